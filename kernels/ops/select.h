#pragma once

#include <cstdint>
#include <span>

#include "protocol/base/result.h"

namespace dkv {

/// Picks, in every head, the tokens with the largest scores, best first.
///
///   scores  [heads, tokens]   f32, read; NaN counts as the smallest
///   keep    [heads]           how many to pick in each head, each at most tokens
///   ids     [Σ keep]          i32, written; head after head, in rank order
///
/// Exact. Equal scores: the lower id first, on every backend. Rank order, so that a prefix of a
/// selection is a selection: trimming a layer later needs no second look at its scores.
struct SelectArgs {
    std::span<float const> scores;
    std::span<std::uint32_t const> keep;
    std::span<std::int32_t> ids;
    std::uint32_t tokens = 0;
};

/// Errors: InvalidArgument when a span disagrees with the table above, or a head's keep > tokens.
Result<void> check(SelectArgs const& args);

}  // namespace dkv
