// Whole tokens from shares of base.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dkv {

/// 0.07 * 100 is a little more than 7: that little is not a token.
inline constexpr double kRoundingSlack = 1e-6;

/// ceil(share * base), at most base.
inline std::uint32_t least_tokens(double share, std::uint32_t base) {
    double const wanted = std::ceil(share * base - kRoundingSlack);
    return static_cast<std::uint32_t>(std::clamp<double>(wanted, 0, base));
}

}  // namespace dkv
