#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace dkv {

/// Element types of a cache. Numbers are part of the wire protocol and of the C ABI.
enum class Dtype : std::uint8_t { F32 = 1, F16 = 2, Bf16 = 3 };

constexpr std::size_t bytes_of(Dtype dtype) noexcept {
    return dtype == Dtype::F32 ? 4 : 2;
}

constexpr std::string_view name_of(Dtype dtype) noexcept {
    switch (dtype) {
        case Dtype::F32: return "f32";
        case Dtype::F16: return "f16";
        case Dtype::Bf16: return "bf16";
    }
    return "unknown";
}

/// The dtype with this wire number, or nothing: foreign numbers are checked before they are cast.
constexpr std::optional<Dtype> dtype_from_wire(std::uint8_t number) noexcept {
    if (number < 1 || number > 3) return std::nullopt;
    return static_cast<Dtype>(number);
}

}  // namespace dkv
