#include "sidecar/pipeline/savings.h"

#include <algorithm>
#include <numeric>

namespace dkv {
namespace {

constexpr std::uint64_t kBlockTokens = 16;

constexpr std::uint64_t blocks_of(std::uint64_t tokens) noexcept {
    return (tokens + kBlockTokens - 1) / kBlockTokens;
}

}  // namespace

std::uint64_t kept_bytes(Geometry const& geometry,
                         std::span<std::uint32_t const> lengths) noexcept {
    auto const rows = std::accumulate(lengths.begin(), lengths.end(), std::uint64_t{0});
    return rows * 2 * geometry.row_bytes();
}

std::uint64_t block_table_bytes(Geometry const& geometry,
                                std::uint32_t prompt_tokens,
                                std::span<std::uint32_t const> lengths) noexcept {
    std::uint64_t const longest = lengths.empty() ? 0 : std::ranges::max(lengths);
    std::uint64_t const full = blocks_of(prompt_tokens);
    std::uint64_t const blocks = full - std::min(full, blocks_of(longest));
    return geometry.cache_bytes(blocks * kBlockTokens);
}

}  // namespace dkv
