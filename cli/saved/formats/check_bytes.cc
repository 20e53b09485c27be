#include "cli/saved/formats/check_bytes.h"

#include <algorithm>
#include <cstring>

#include "protocol/container/crc32.h"

// Left out: what SSE4 is next to anyway.
#define HWY_DISABLED_TARGETS HWY_SSSE3
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cli/saved/formats/check_bytes.cc"
// The order matters.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace dkv::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// Whether a number's exponent is all ones. Without its sign, that is to be at least such an
/// exponent with a fraction of zero: the largest one tells of all.
template <class Word>
bool has_ones(std::byte const* bytes, std::size_t count, Word exponent) {
    hn::ScalableTag<Word> const words;
    std::size_t const lanes = hn::Lanes(words);
    auto const* const from = reinterpret_cast<Word const*>(bytes);
    auto const doubled = [&](std::size_t at) {
        return hn::ShiftLeft<1>(hn::LoadU(words, from + at));
    };
    auto largest = hn::Zero(words);
    auto other = largest;
    std::size_t i = 0;
    for (; i + 2 * lanes <= count; i += 2 * lanes) {
        largest = hn::Max(largest, doubled(i));
        other = hn::Max(other, doubled(i + lanes));
    }
    for (; i < count; i += lanes) {
        std::size_t const rest = std::min(lanes, count - i);
        HWY_ALIGN Word last[hn::MaxLanes(words)] = {};
        std::memcpy(last, from + i, rest * sizeof(Word));
        other = hn::Max(other, hn::ShiftLeft<1>(hn::Load(words, last)));
    }
    auto const least = hn::Set(words, static_cast<Word>(exponent << 1U));
    return !hn::AllTrue(words, hn::Lt(hn::Max(largest, other), least));
}

bool has_not_finite(std::span<std::byte const> bytes, Dtype dtype) {
    switch (dtype) {
        case Dtype::F32: return has_ones<std::uint32_t>(bytes.data(), bytes.size() / 4, 0x7f800000);
        case Dtype::F16: return has_ones<std::uint16_t>(bytes.data(), bytes.size() / 2, 0x7c00);
        case Dtype::Bf16: return has_ones<std::uint16_t>(bytes.data(), bytes.size() / 2, 0x7f80);
    }
    return false;
}

}  // namespace
}  // namespace dkv::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dkv {

HWY_EXPORT(has_not_finite);

namespace {

// Fits a core's own cache: what the CRC has read, the other loop finds there.
constexpr std::size_t kBlockBytes = std::size_t{32} << 10U;

bool has_not_finite(std::span<std::byte const> bytes, Dtype dtype) noexcept {
    return HWY_DYNAMIC_DISPATCH(has_not_finite)(bytes, dtype);
}

}  // namespace

BytesReport check_bytes(std::span<std::byte const> bytes,
                        std::optional<Dtype> floats,
                        bool with_crc) noexcept {
    BytesReport report;
    for (std::size_t begin = 0; begin < bytes.size(); begin += kBlockBytes) {
        auto const block = bytes.subspan(begin, std::min(kBlockBytes, bytes.size() - begin));
        if (with_crc) report.crc = crc32(report.crc, block);
        if (!floats || report.not_finite || !has_not_finite(block, *floats)) continue;
        std::size_t const element = bytes_of(*floats);
        for (std::size_t at = 0; at < block.size() && !report.not_finite; at += element)
            if (has_not_finite(block.subspan(at, element), *floats))
                report.not_finite = (begin + at) / element;
    }
    return report;
}

}  // namespace dkv
#endif  // HWY_ONCE
