// DynamicKV as it was released: which tokens the published code keeps, faults included. For trust
// and for comparison; dynamickv is what users should run.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "protocol/base/result.h"

namespace dkv::reference {

/// The positions that one query head keeps, in stored order: prefix by falling score, then the
/// window. A position can stand twice.
using StoredList = std::vector<std::int32_t>;

struct DynamicKvRefParams {
    std::uint32_t layers = 0;           ///< L
    std::uint32_t heads = 0;            ///< Hq: the release works per query head.
    std::uint32_t prompt_tokens = 0;    ///< n
    std::uint32_t window = 8;           ///< ws
    std::uint32_t base = 0;             ///< Capacity less the window.
    double r_max = 10.0;                ///< A layer stages at most int(r_max * base) prefix tokens.
    std::uint32_t update_interval = 4;  ///< m: layers between two updates.

    bool keeps_all() const noexcept { return prompt_tokens <= window; }
    std::uint32_t prefix() const noexcept { return keeps_all() ? 0 : prompt_tokens - window; }
};

/// One prompt, layer by layer. Where the release would crash because the prompt is no longer than
/// the window, everything is kept. Layers after the last whole interval keep what they staged.
class DynamicKvRef {
public:
    /// Errors: InvalidArgument, naming the value: layers, heads, window or update_interval 0, more
    /// than 2^31 - 1 prompt tokens, r_max negative or not finite.
    static Result<DynamicKvRef> create(DynamicKvRefParams const& params);

    /// Stages the next layer, then updates all layers seen when an update is due.
    ///
    ///   pooled  [heads, N]  f32; an even kernel's [heads, N + 1] is taken as the release does
    ///
    /// Errors: InvalidArgument for scores of another size, and where the release raises: an update
    /// that divides by zero, or an even kernel's position beyond the prefix among the best. After
    /// an error no layer can be added. BadState for a layer too many or after an error.
    Result<void> add_layer(std::span<float const> pooled);

    /// B: the most prefix tokens a layer stages.
    std::uint32_t stage_limit() const noexcept { return stage_limit_; }

    /// After each update, the budget of every layer seen, before it meets what is stored.
    std::vector<std::vector<std::int64_t>> const& budgets_per_update() const noexcept {
        return budgets_per_update_;
    }

    /// [layers seen][heads]
    std::vector<std::vector<StoredList>> const& stored() const noexcept { return stored_; }

    /// Entries that repeat a position of the same list, over all layers and heads.
    std::uint64_t duplicate_entries() const;

    /// The name of the exception that the release raises here, or nothing.
    std::string_view raised() const noexcept { return raised_; }

private:
    explicit DynamicKvRef(DynamicKvRefParams const& params);

    Result<std::vector<StoredList>> stage(std::span<float const> pooled, std::size_t columns);
    Result<void> update();
    std::vector<std::int64_t> count_top(std::uint64_t total) const;
    Result<std::vector<std::int64_t>> budgets_of(std::span<std::int64_t const> counts);
    void cut(std::span<std::int64_t const> budgets);
    Error raise(std::string_view exception, std::string_view why);

    DynamicKvRefParams params_;
    std::uint32_t stage_limit_ = 0;
    std::size_t columns_ = 0;                 // Scores per head; fixed by the first layer.
    std::vector<std::vector<float>> scores_;  // [layers seen], each [heads, columns]
    std::vector<std::vector<StoredList>> stored_;
    std::vector<std::vector<std::int64_t>> budgets_per_update_;
    std::string_view raised_;
    bool failed_ = false;
};

}  // namespace dkv::reference
