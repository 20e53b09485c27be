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

/// A row of 2-byte elements as it lies there. Its sums are those of WideRow, added in the same
/// order: whichever is met, the bits are the same.
struct HalfRow {
    std::uint16_t const* data;
    Dtype dtype;

    HWY_INLINE Vec load(std::size_t dim) const { return load_widened(data + dim, dtype); }
    HWY_INLINE float at(std::size_t dim) const {
        return load_f32(reinterpret_cast<std::byte const*>(data + dim), dtype);
    }
};

struct WideRow {
    float const* data;

    HWY_INLINE Vec load(std::size_t dim) const { return hn::LoadU(kF32, data + dim); }
    HWY_INLINE float at(std::size_t dim) const { return data[dim]; }
};

/// Σ a·b over the row.
template <class A, class B>
HWY_INLINE float dot(A a, B b, std::size_t count) {
    Vec sums[2] = {hn::Zero(kF32), hn::Zero(kF32)};
    std::size_t dim = 0;
    for (; dim + 2 * kLanes <= count; dim += 2 * kLanes)
        for (std::size_t i = 0; i < 2; ++i) {
            std::size_t const at = dim + i * kLanes;
            sums[i] = hn::MulAdd(a.load(at), b.load(at), sums[i]);
        }
    float rest = 0;
    for (; dim < count; ++dim)
        rest += a.at(dim) * b.at(dim);
    return rest + hn::GetLane(hn::SumOfLanes(kF32, hn::Add(sums[0], sums[1])));
}

template <class Row>
HWY_INLINE void add_direction(Row row, std::size_t count, float* sum) {
    float const norm = std::sqrt(dot(row, row, count));
    if (!std::isfinite(norm) || norm == 0) return;
    Vec const factor = hn::Set(kF32, 1 / norm);
    std::size_t dim = 0;
    for (; dim + kLanes <= count; dim += kLanes)
        hn::StoreU(hn::MulAdd(row.load(dim), factor, hn::LoadU(kF32, sum + dim)), kF32, sum + dim);
    for (; dim < count; ++dim)
        sum[dim] += row.at(dim) / norm;
}

template <class Row>
HWY_INLINE float norm_score(Row row, std::size_t count) {
    float const norm = std::sqrt(dot(row, row, count));
    return std::isfinite(norm) ? -norm : std::numeric_limits<float>::lowest();
}

template <class Row>
HWY_INLINE float cosine_score(Row row, float const* mean, std::size_t count) {
    float const norm = std::sqrt(dot(row, row, count));
    if (!std::isfinite(norm)) return std::numeric_limits<float>::lowest();
    return norm == 0 ? 0.0f : -dot(row, WideRow{mean}, count) / norm;
}

/// body(row) for each token's row, of the dtype's own kind where vectors can take it in place.
template <class Body>
HWY_INLINE void for_each_row(KeyRange const& range, float* memory, Body const& body) {
    RowsView const& keys = *range.keys;
    bool const in_place = keys.dtype != Dtype::F32 && keys.dim_stride == 1 &&
                          reinterpret_cast<std::uintptr_t>(keys.data) % sizeof(std::uint16_t) == 0;
    for (std::uint32_t token = range.begin; token < range.end; ++token) {
        std::byte const* const row = keys.row(range.head, token);
        auto const* const halves = reinterpret_cast<std::uint16_t const*>(row);
        if (!in_place)
            body(WideRow{dense_row(row, keys, memory)});
        else if (keys.dtype == Dtype::F16)
            body(HalfRow{halves, Dtype::F16});
        else
            body(HalfRow{halves, Dtype::Bf16});
    }
}

void key_norms(KeyRange const& range, float* memory, float* scores) {
    std::size_t const dim = range.keys->head_dim;
    for_each_row(range, memory, [&](auto row) HWY_ATTR { *scores++ = norm_score(row, dim); });
}

void add_directions(KeyRange const& range, float* memory, float* sum) {
    std::size_t const dim = range.keys->head_dim;
    for_each_row(range, memory, [&](auto row) HWY_ATTR { add_direction(row, dim, sum); });
}

void key_cosines(KeyRange const& range, float const* mean, float* memory, float* scores) {
    std::size_t const dim = range.keys->head_dim;
    for_each_row(range, memory,
                 [&](auto row) HWY_ATTR { *scores++ = cosine_score(row, mean, dim); });
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
