#include "kernels/cpu/key_tiles.h"

#include <cmath>
#include <limits>

// Left out: as in score_tiles.cc.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/key_tiles.cc"
// The order matters.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/widen-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace dkv::cpu::HWY_NAMESPACE {
namespace {

/// Σ a·b over the row.
HWY_INLINE float dot(float const* a, float const* b, std::size_t count) {
    Vec sums[2] = {hn::Zero(kF32), hn::Zero(kF32)};
    std::size_t dim = 0;
    for (; dim + 2 * kLanes <= count; dim += 2 * kLanes)
        for (std::size_t i = 0; i < 2; ++i)
            sums[i] = hn::MulAdd(hn::LoadU(kF32, a + dim + i * kLanes),
                                 hn::LoadU(kF32, b + dim + i * kLanes), sums[i]);
    float rest = 0;
    for (; dim < count; ++dim)
        rest += a[dim] * b[dim];
    return rest + hn::GetLane(hn::SumOfLanes(kF32, hn::Add(sums[0], sums[1])));
}

float const* key(KeyRange const& range, std::uint32_t token, float* memory) {
    return dense_row(range.keys->row(range.head, token), *range.keys, memory);
}

void key_norms(KeyRange const& range, float* memory, float* scores) {
    std::size_t const dim = range.keys->head_dim;
    for (std::uint32_t token = range.begin; token < range.end; ++token) {
        float const* const row = key(range, token, memory);
        float const norm = std::sqrt(dot(row, row, dim));
        *scores++ = std::isfinite(norm) ? -norm : std::numeric_limits<float>::lowest();
    }
}

void add_directions(KeyRange const& range, float* memory, float* sum) {
    std::size_t const count = range.keys->head_dim;
    for (std::uint32_t token = range.begin; token < range.end; ++token) {
        float const* const row = key(range, token, memory);
        float const norm = std::sqrt(dot(row, row, count));
        if (!std::isfinite(norm) || norm == 0) continue;
        Vec const factor = hn::Set(kF32, 1 / norm);
        std::size_t dim = 0;
        for (; dim + kLanes <= count; dim += kLanes)
            hn::StoreU(hn::MulAdd(hn::LoadU(kF32, row + dim), factor, hn::LoadU(kF32, sum + dim)),
                       kF32, sum + dim);
        for (; dim < count; ++dim)
            sum[dim] += row[dim] / norm;
    }
}

void key_cosines(KeyRange const& range, float const* mean, float* memory, float* scores) {
    std::size_t const dim = range.keys->head_dim;
    for (std::uint32_t token = range.begin; token < range.end; ++token) {
        float const* const row = key(range, token, memory);
        float const norm = std::sqrt(dot(row, row, dim));
        *scores++ = !std::isfinite(norm) ? std::numeric_limits<float>::lowest()
                    : norm == 0          ? 0.0f
                                         : -dot(row, mean, dim) / norm;
    }
}

}  // namespace
}  // namespace dkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dkv::cpu {

HWY_EXPORT(key_norms);
HWY_EXPORT(add_directions);
HWY_EXPORT(key_cosines);

void key_norms(KeyRange const& range, float* memory, float* scores) {
    HWY_DYNAMIC_DISPATCH(key_norms)(range, memory, scores);
}

void add_directions(KeyRange const& range, float* memory, float* sum) {
    HWY_DYNAMIC_DISPATCH(add_directions)(range, memory, sum);
}

void key_cosines(KeyRange const& range, float const* mean, float* memory, float* scores) {
    HWY_DYNAMIC_DISPATCH(key_cosines)(range, mean, memory, scores);
}

}  // namespace dkv::cpu
#endif  // HWY_ONCE
