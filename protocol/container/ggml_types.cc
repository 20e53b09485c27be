#include "protocol/container/ggml_types.h"

#include <algorithm>

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

}  // namespace

GgmlType const* ggml_type(std::int32_t number) noexcept {
    auto const* const found = std::ranges::find(kTypes, number, &GgmlType::number);
    return found == std::end(kTypes) ? nullptr : found;
}

GgmlType const& ggml_type(Dtype dtype) noexcept {
    return *std::ranges::find(kTypes, std::optional(dtype), &GgmlType::dtype);
}

}  // namespace dkv
