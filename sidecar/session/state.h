// What may happen to a session, and when. Pure: session.cc has the effects.
//
//            Bind           Plan            Commit             Adopt
//   Open ───────────▶ Prefill ────▶ Planned ──────▶ Committed ───────▶ Adopted
//                     │  ▲ Layer
//                     └──┘
//   Open, Prefill, Planned ── Fail ──▶ Failed          every state but Closed ── Close ──▶ Closed
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace dkv {

/// Numbers are part of the wire protocol.
enum class SessionState : std::uint8_t {
    Open = 0,       ///< A policy is chosen; the buffers are not there yet.
    Prefill = 1,    ///< Layers come.
    Planned = 2,    ///< Every budget is final; layers are being packed.
    Committed = 3,  ///< The destination is complete.
    Adopted = 4,    ///< The engine decodes against it.
    Closed = 5,
    Failed = 6  ///< Not compressed; waits for the engine to close it.
};

constexpr std::size_t kSessionStates = 7;

enum class SessionEvent : std::uint8_t { Bind, Layer, Plan, Commit, Adopt, Fail, Close };

/// The state after the event, or nothing where the event is not allowed.
constexpr std::optional<SessionState> next(SessionState state, SessionEvent event) noexcept {
    using enum SessionState;
    switch (event) {
        case SessionEvent::Bind: return state == Open ? std::optional{Prefill} : std::nullopt;
        case SessionEvent::Layer: return state == Prefill ? std::optional{Prefill} : std::nullopt;
        case SessionEvent::Plan: return state == Prefill ? std::optional{Planned} : std::nullopt;
        case SessionEvent::Commit:
            return state == Planned ? std::optional{Committed} : std::nullopt;
        case SessionEvent::Adopt: return state == Committed ? std::optional{Adopted} : std::nullopt;
        case SessionEvent::Fail:
            return state == Open || state == Prefill || state == Planned ? std::optional{Failed}
                                                                         : std::nullopt;
        case SessionEvent::Close: return state != Closed ? std::optional{Closed} : std::nullopt;
    }
    return std::nullopt;
}

constexpr std::string_view name_of(SessionState state) noexcept {
    switch (state) {
        case SessionState::Open: return "open";
        case SessionState::Prefill: return "prefill";
        case SessionState::Planned: return "planned";
        case SessionState::Committed: return "committed";
        case SessionState::Adopted: return "adopted";
        case SessionState::Closed: return "closed";
        case SessionState::Failed: return "failed";
    }
    return "unknown";
}

}  // namespace dkv
