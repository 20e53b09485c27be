// torch's CPU operators as the published policies use them, to the bit: which tokens a release
// keeps depends on the order in which torch ranks equal scores and adds neighbours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "protocol/base/result.h"
#include "protocol/base/score_options.h"

namespace dkv::reference {

/// A score and what it belongs to: a position, or a layer where only that matters.
struct Ranked {
    float score;
    std::uint32_t tag;
};

/// Brings the `count` largest scores to the front, largest first, as torch.topk does on CPU: NaN
/// above everything; which of several equal scores comes first, or gets in at all, is decided by
/// libstdc++'s partial_sort and nth_element. Those look at the order in which entries stand, so
/// the caller has them in torch's. Requires count <= entries.size().
void rank_top(std::span<Ranked> entries, std::size_t count);

/// The positions of the `count` largest scores, largest first. Requires count <= scores.size().
std::vector<std::int32_t> top_positions(std::span<float const> scores, std::size_t count);

/// How many scores pooling makes of `tokens`: an even kernel makes one too many. None of none.
constexpr std::size_t pooled_columns(std::size_t tokens, std::uint32_t kernel) noexcept {
    return tokens == 0 ? 0 : tokens + (kernel % 2 == 0 ? 1 : 0);
}

/// avg_pool1d or max_pool1d of each row, stride 1, padding kernel / 2. The mean divides by the
/// kernel everywhere, also where the window reaches outside.
///
///   scores   [rows, tokens]
///   returns  [rows, pooled_columns(tokens, kernel)]
///
/// Errors: InvalidArgument for a kernel of 0 and for scores that are not whole rows.
Result<std::vector<float>> pool1d(std::span<float const> scores,
                                  std::uint32_t rows,
                                  Pool pool,
                                  std::uint32_t kernel);

/// The mean over each group of `group` consecutive rows: view(groups, group, columns).mean(1). Rows
/// are added in order. So does torch up to groups of 4; beyond, its order hangs on vector width and
/// threads, and the last bit with it.
///
///   scores   [groups * group, columns]
///   returns  [groups, columns]
///
/// Errors: InvalidArgument when a size is 0 or the scores do not divide into groups.
Result<std::vector<float>> group_mean(std::span<float const> scores,
                                      std::uint32_t groups,
                                      std::uint32_t group);

/// Python's `dividend // divisor` on floats, which is not floor(dividend / divisor): it goes
/// through the remainder. Requires divisor > 0 and dividend >= 0.
double float_floor_divide(double dividend, double divisor);

}  // namespace dkv::reference
