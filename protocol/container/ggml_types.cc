#include "protocol/container/ggml_types.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "protocol/base/assert.h"
#include "protocol/base/elements.h"

namespace dkv {
namespace {

constexpr std::uint32_t kBlock = 32;

constexpr GgmlType kTypes[] = {
    {0, "f32", 1, 4, Dtype::F32},
    {1, "f16", 1, 2, Dtype::F16},
    {2, "q4_0", kBlock, 18, std::nullopt},
    {3, "q4_1", kBlock, 20, std::nullopt},
    {6, "q5_0", kBlock, 22, std::nullopt},
    {7, "q5_1", kBlock, 24, std::nullopt},
    {8, "q8_0", kBlock, 34, std::nullopt},
    {9, "q8_1", 0, 0, std::nullopt},
    {10, "q2_k", 0, 0, std::nullopt},
    {11, "q3_k", 0, 0, std::nullopt},
    {12, "q4_k", 0, 0, std::nullopt},
    {13, "q5_k", 0, 0, std::nullopt},
    {14, "q6_k", 0, 0, std::nullopt},
    {15, "q8_k", 0, 0, std::nullopt},
    {20, "iq4_nl", kBlock, 18, std::nullopt},
    {23, "iq4_xs", 0, 0, std::nullopt},
    {30, "bf16", 1, 2, Dtype::Bf16},
    {34, "tq1_0", 0, 0, std::nullopt},
    {35, "tq2_0", 0, 0, std::nullopt},
    {39, "mxfp4", 0, 0, std::nullopt},
};

// The sixteen levels of iq4_nl.
constexpr std::int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

float f16_at(std::byte const* at) noexcept {
    return load_f32(at, Dtype::F16);
}

/// The `index`th of 32 four-bit numbers: the first sixteen are the low halves of sixteen bytes.
unsigned nibble(std::byte const* packed, std::uint32_t index) noexcept {
    auto const byte = std::to_integer<unsigned>(packed[index % 16]);
    return index < 16 ? byte & 0xfU : byte >> 4U;
}

/// The same with a fifth bit, out of the four bytes at `high`.
unsigned five_bits(std::byte const* high, std::byte const* packed, std::uint32_t index) noexcept {
    std::uint32_t bits = 0;
    std::memcpy(&bits, high, sizeof bits);
    return nibble(packed, index) | (bits >> index & 1U) << 4U;
}

float element(std::int32_t number, std::byte const* block, std::uint32_t index) noexcept {
    float const scale = f16_at(block);
    auto const times = [scale](unsigned level, int zero) {
        return scale * static_cast<float>(static_cast<int>(level) - zero);
    };
    switch (number) {
        case 2: return times(nibble(block + 2, index), 8);
        case 3: return times(nibble(block + 4, index), 0) + f16_at(block + 2);
        case 6: return times(five_bits(block + 2, block + 6, index), 16);
        case 7: return times(five_bits(block + 4, block + 8, index), 0) + f16_at(block + 2);
        case 8: return scale * static_cast<float>(std::to_integer<std::int8_t>(block[2 + index]));
        case 20: return scale * static_cast<float>(kIq4Levels[nibble(block + 2, index)]);
        default: return 0;
    }
}

/// 0 of a scale that f16 rounds to 0.
float inverse_of(float scale) noexcept {
    return std::abs(scale) < 0x1p-25F ? 0 : 1 / scale;
}

/// False where f16 does not hold the scale.
bool put_scale(float scale, std::byte* block) noexcept {
    store_f32(block, Dtype::F16, scale);
    return std::isfinite(f16_at(block));
}

bool quantise_q8_0(std::span<float const> numbers, std::byte* block) noexcept {
    float largest = 0;
    for (float const number : numbers)
        largest = std::max(largest, std::abs(number));
    float const scale = largest / 127;
    float const inverse = inverse_of(scale);
    for (std::uint32_t index = 0; index < kBlock; ++index)
        block[2 + index] =
            static_cast<std::byte>(static_cast<int>(std::round(numbers[index] * inverse)));
    return put_scale(scale, block);
}

/// The largest number, with its sign, becomes -8.
bool quantise_q4_0(std::span<float const> numbers, std::byte* block) noexcept {
    float const largest =
        *std::ranges::max_element(numbers, {}, [](float number) { return std::abs(number); });
    float const scale = largest / -8;
    float const inverse = inverse_of(scale);
    auto const level = [&](std::uint32_t index) {
        return std::min(15U, static_cast<unsigned>(numbers[index] * inverse + 8.5F));
    };
    for (std::uint32_t index = 0; index < kBlock / 2; ++index)
        block[2 + index] = static_cast<std::byte>(level(index) | level(index + kBlock / 2) << 4U);
    return put_scale(scale, block);
}

}  // namespace

GgmlType const* ggml_type(std::int32_t number) noexcept {
    auto const* const found = std::ranges::find(kTypes, number, &GgmlType::number);
    return found == std::end(kTypes) ? nullptr : found;
}

GgmlType const& ggml_type(Dtype dtype) noexcept {
    return *std::ranges::find(kTypes, std::optional(dtype), &GgmlType::dtype);
}

void dequantise(GgmlType const& type, std::byte const* blocks, std::span<float> rows) noexcept {
    DKV_ASSERT(type.is_readable() && rows.size() % type.block_elements == 0);
    if (type.dtype) {
        for (std::size_t i = 0; i < rows.size(); ++i)
            rows[i] = load_f32(blocks + i * type.block_bytes, *type.dtype);
        return;
    }
    for (std::size_t begin = 0; begin < rows.size(); begin += kBlock, blocks += type.block_bytes)
        for (std::uint32_t index = 0; index < kBlock; ++index)
            rows[begin + index] = element(type.number, blocks, index);
}

bool quantise(GgmlType const& type, std::span<float const> rows, std::byte* blocks) noexcept {
    DKV_ASSERT((type.number == 8 || type.number == 2) && rows.size() % kBlock == 0);
    for (std::size_t begin = 0; begin < rows.size(); begin += kBlock, blocks += type.block_bytes) {
        auto const numbers = rows.subspan(begin, kBlock);
        if (!std::ranges::all_of(numbers, [](float number) { return std::isfinite(number); }))
            return false;
        bool const fits =
            type.number == 8 ? quantise_q8_0(numbers, blocks) : quantise_q4_0(numbers, blocks);
        if (!fits) return false;
    }
    return true;
}

void turn_by_hadamard(std::span<float> row, std::uint32_t order) noexcept {
    DKV_ASSERT(order > 0 && row.size() % order == 0);
    float const scale = 1 / std::sqrt(static_cast<float>(order));
    for (std::size_t begin = 0; begin < row.size(); begin += order) {
        auto const run = row.subspan(begin, order);
        for (std::uint32_t half = 1; half < order; half *= 2)
            for (std::uint32_t i = 0; i < order; i += 2 * half)
                for (std::uint32_t j = i; j < i + half; ++j) {
                    float const a = run[j];
                    float const b = run[j + half];
                    run[j] = a + b;
                    run[j + half] = a - b;
                }
        for (float& value : run)
            value *= scale;
    }
}

}  // namespace dkv
