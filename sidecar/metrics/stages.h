// Where a prompt's time goes: for metrics, and for `dkv trace`.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "protocol/base/steady.h"

namespace dkv {

/// Numbers are part of the wire protocol.
enum class Stage : std::uint8_t {
    Wait = 0,    ///< For the engine's event of a layer.
    Open = 1,    ///< Memory for the whole prompt is found.
    Score = 2,   ///< A layer's tokens are scored. On a GPU: the work is queued.
    Select = 3,  ///< The best tokens and the budgets. On a GPU: includes waiting for the scores.
    Stage = 4,   ///< A layer's best rows are copied to the staging buffer.
    Pack = 5,    ///< A layer's kept rows are copied to the destination.
    Commit = 6   ///< Totals are made, and the engine's pages are let go.
};

inline constexpr std::array kStages{Stage::Wait,  Stage::Open, Stage::Score, Stage::Select,
                                    Stage::Stage, Stage::Pack, Stage::Commit};

constexpr std::string_view name_of(Stage stage) noexcept {
    switch (stage) {
        case Stage::Wait: return "wait";
        case Stage::Open: return "open";
        case Stage::Score: return "score";
        case Stage::Select: return "select";
        case Stage::Stage: return "stage";
        case Stage::Pack: return "pack";
        case Stage::Commit: return "commit";
    }
    return "unknown";
}

struct Span {
    Stage stage = Stage::Wait;
    std::int32_t layer = -1;     ///< -1: of the whole prompt.
    std::uint64_t begin_ns = 0;  ///< Of the steady clock.
    std::uint64_t duration_ns = 0;
};

/// The span from `begin_ns` until now.
inline Span span_since(std::uint64_t begin_ns, Stage stage, std::int32_t layer) noexcept {
    return {stage, layer, begin_ns, steady_ns() - begin_ns};
}

}  // namespace dkv
