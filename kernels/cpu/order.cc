#include "kernels/cpu/order.h"

// Left out: what SSE4 is next to anyway, and vectors without a size, as in score_tiles.cc.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/order.cc"
// The order matters.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace dkv::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
constexpr F32 kF32;
constexpr U32 kU32;
constexpr std::size_t kLanes = hn::MaxLanes(kU32);

HWY_INLINE hn::Vec<U32> keys_of(hn::Vec<F32> scores) {
    auto const bits = hn::BitCast(kU32, hn::Add(scores, hn::Zero(kF32)));  // -0 + 0 is 0.
    auto const negative = hn::BroadcastSignBit(hn::BitCast(hn::RebindToSigned<U32>(), bits));
    auto const flip = hn::Or(hn::BitCast(kU32, negative), hn::Set(kU32, 0x80000000u));
    auto const number = hn::RebindMask(kU32, hn::Eq(scores, scores));
    return hn::IfThenElseZero(number, hn::Xor(bits, flip));
}

void make_keys(std::span<float const> scores, std::uint32_t* keys) {
    std::size_t i = 0;
    for (; i + kLanes <= scores.size(); i += kLanes)
        hn::StoreU(keys_of(hn::LoadU(kF32, scores.data() + i)), kU32, keys + i);
    for (; i < scores.size(); ++i) {
        HWY_ALIGN float score[kLanes] = {scores[i]};
        HWY_ALIGN std::uint32_t key[kLanes];
        hn::Store(keys_of(hn::Load(kF32, score)), kU32, key);
        keys[i] = key[0];
    }
}

std::size_t collect_keys(std::span<std::uint32_t const> keys,
                         std::uint32_t low,
                         std::uint32_t high,
                         std::uint32_t* out,
                         std::uint64_t& above) {
    auto const lowest = hn::Set(kU32, low);
    auto const highest = hn::Set(kU32, high);
    std::size_t count = 0;
    std::size_t i = 0;
    for (; i + kLanes <= keys.size(); i += kLanes) {
        auto const key = hn::LoadU(kU32, keys.data() + i);
        auto const more = hn::Gt(key, highest);
        above += hn::CountTrue(kU32, more);
        auto const inside = hn::Not(hn::Or(more, hn::Gt(lowest, key)));
        hn::StoreU(hn::Compress(key, inside), kU32,
                   out + count);  // Whole vectors: hence the slack.
        count += hn::CountTrue(kU32, inside);
    }
    for (; i < keys.size(); ++i) {
        above += keys[i] > high;
        out[count] = keys[i];
        count += keys[i] >= low && keys[i] <= high;
    }
    return count;
}

}  // namespace
}  // namespace dkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dkv::cpu {

HWY_EXPORT(make_keys);
HWY_EXPORT(collect_keys);

void make_keys(std::span<float const> scores, std::uint32_t* keys) {
    HWY_DYNAMIC_DISPATCH(make_keys)(scores, keys);
}

std::size_t collect_keys(std::span<std::uint32_t const> keys,
                         std::uint32_t low,
                         std::uint32_t high,
                         std::uint32_t* out,
                         std::uint64_t& above) {
    return HWY_DYNAMIC_DISPATCH(collect_keys)(keys, low, high, out, above);
}

}  // namespace dkv::cpu
#endif  // HWY_ONCE
