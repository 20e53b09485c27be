// What the ops are measured on, in device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "protocol/device/memory.h"
#include "tools/gpu/measure.h"

namespace dkv::gpu {

inline constexpr std::uint32_t kWindow = 32;
inline constexpr std::uint32_t kAccumulateTokensMax = 4096;  // Its work grows by the square.

template <class T>
std::span<T> as(std::span<std::byte> bytes) {
    return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
}

/// One shape's inputs and outputs.
///
///   keys     [kv_heads, tokens, head_dim]
///   queries  [q_heads, window or, for accumulate, tokens, head_dim]
///   scores   [layers, kv_heads, tokens - window]   f32, skewed as attention is
///   ids      [kv_heads, tokens / 4]                ascending
///   out      whatever an op writes
struct Inputs {
    std::unique_ptr<cuda::DeviceMemory> keys, queries, scores, ids, out;

    static Result<Inputs> create(Shape const& shape);
};

inline std::uint64_t row_bytes(Shape const& shape) {
    return std::uint64_t{shape.head_dim} * bytes_of(shape.dtype);
}
inline std::uint64_t key_bytes(Shape const& shape) {
    return std::uint64_t{shape.kv_heads} * shape.tokens * row_bytes(shape);
}
/// Scores of one layer.
inline std::size_t columns(Shape const& shape) {
    return std::size_t{shape.kv_heads} * (shape.tokens - kWindow);
}
inline std::uint32_t kept_rows(Shape const& shape) {
    return shape.tokens / 4;
}

}  // namespace dkv::gpu
