// The order of a key's dims: which two turn together.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"
#include "protocol/container/rope.h"

namespace dkv {

enum class KeyOrder : std::uint8_t {
    Halves,  ///< i and i + dims/2: Hugging Face, mlx-lm, llama.cpp's NEOX.
    Pairs    ///< 2i and 2i + 1: llama.cpp's NORM.
};

/// "halves", "pairs": as --key-order takes them.
std::string_view name_of(KeyOrder order) noexcept;
std::optional<KeyOrder> key_order(std::string_view name) noexcept;

/// Brings rows from one order into the other. Only the dims that turn are moved.
class KeyReorder {
public:
    /// From the order that `rope` says to `to`. Errors: InvalidArgument for dims that are odd or
    /// more than head_dim.
    static Result<KeyReorder> create(RopeFacts const& rope,
                                     KeyOrder to,
                                     std::uint32_t head_dim,
                                     Dtype dtype);

    bool is_needed() const noexcept { return !from_.empty(); }
    /// `rows`: rows of head_dim, in place.
    void apply(std::span<std::byte> rows);

private:
    std::vector<std::uint32_t> from_;  // [head_dim] the dim that comes here; empty: stays.
    std::size_t element_ = 0;
    std::vector<std::byte> row_;
};

}  // namespace dkv
