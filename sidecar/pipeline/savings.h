#pragma once

#include <cstdint>
#include <span>

#include "protocol/base/geometry.h"

namespace dkv {

/// Bytes of K and V in `lengths` [layers, kv_heads] rows.
std::uint64_t kept_bytes(Geometry const& geometry, std::span<std::uint32_t const> lengths) noexcept;

/// What a host gets back that has one block table, so one length, for all layers and heads: the
/// blocks of the prompt beyond those of the longest head.
std::uint64_t block_table_bytes(Geometry const& geometry,
                                std::uint32_t prompt_tokens,
                                std::span<std::uint32_t const> lengths) noexcept;

}  // namespace dkv
