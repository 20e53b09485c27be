// What a model's cache looks like, and what one prompt makes of it. Numbers only.
#pragma once

#include <cstdint>
#include <string>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"

namespace dkv {

/// The compressible layers of a model. Layers that bound their own cache (sliding windows) are not
/// counted: the engine numbers the others 0 … layers-1.
struct Geometry {
    std::uint32_t layers = 0;
    std::uint32_t q_heads = 0;   ///< Query heads per layer, a multiple of kv_heads.
    std::uint32_t kv_heads = 0;  ///< KV heads per layer.
    std::uint32_t head_dim = 0;
    Dtype dtype = Dtype::F32;

    std::uint32_t group() const noexcept { return q_heads / kv_heads; }
    std::uint64_t row_bytes() const noexcept { return std::uint64_t{head_dim} * bytes_of(dtype); }
    /// K and V of one token in one layer, all KV heads.
    std::uint64_t token_bytes() const noexcept { return std::uint64_t{2} * kv_heads * row_bytes(); }
    /// K and V of `tokens` tokens in every layer.
    std::uint64_t cache_bytes(std::uint64_t tokens) const noexcept {
        return tokens * layers * token_bytes();
    }

    bool operator==(Geometry const&) const = default;
};

/// Errors: InvalidArgument, naming the field, when a count is 0 or above its limit
/// (layers 1024, heads 1024, head_dim 1024), or q_heads is not a multiple of kv_heads.
Result<void> check(Geometry const& geometry);

/// "30 layers, 9/3 heads, head_dim 64, f32"
std::string describe(Geometry const& geometry);

}  // namespace dkv
