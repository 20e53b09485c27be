#include "cli/saved/offline/attention_tiles.h"

// Left out: what SSE4 is next to anyway, and vectors without a size, which arrays cannot hold.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cli/saved/offline/attention_tiles.cc"
// The order matters.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace dkv::offline::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Lanes beyond a tile's columns are not used.
using F32 = hn::CappedTag<float, kTileColumns>;
using Vec = hn::Vec<F32>;
constexpr F32 kF32;

/// A block of c that stays in registers: kRows rows of kVecs vectors.
template <std::size_t kRows, std::size_t kVecs>
HWY_INLINE void multiply_block(float const* a,
                               std::size_t a_stride,
                               float const* b,
                               float* c,
                               std::size_t inner,
                               std::size_t columns) {
    std::size_t const lanes = hn::Lanes(kF32);
    Vec sum[kRows][kVecs];
    for (std::size_t row = 0; row < kRows; ++row)
        for (std::size_t vec = 0; vec < kVecs; ++vec)
            sum[row][vec] = hn::Load(kF32, c + row * columns + vec * lanes);
    for (std::size_t i = 0; i < inner; ++i)
        for (std::size_t vec = 0; vec < kVecs; ++vec) {
            Vec const factor = hn::Load(kF32, b + i * columns + vec * lanes);
            for (std::size_t row = 0; row < kRows; ++row)
                sum[row][vec] =
                    hn::MulAdd(hn::Set(kF32, a[row * a_stride + i]), factor, sum[row][vec]);
        }
    for (std::size_t row = 0; row < kRows; ++row)
        for (std::size_t vec = 0; vec < kVecs; ++vec)
            hn::Store(sum[row][vec], kF32, c + row * columns + vec * lanes);
}

template <std::size_t kRows>
void multiply_rows(float const* a,
                   std::size_t a_stride,
                   float const* b,
                   float* c,
                   std::size_t inner,
                   std::size_t columns) {
    std::size_t const lanes = hn::Lanes(kF32);
    std::size_t column = 0;
    for (; column + 2 * lanes <= columns; column += 2 * lanes)
        multiply_block<kRows, 2>(a, a_stride, b + column, c + column, inner, columns);
    for (; column < columns; column += lanes)
        multiply_block<kRows, 1>(a, a_stride, b + column, c + column, inner, columns);
}

void multiply_add(float const* a,
                  std::size_t a_stride,
                  float const* b,
                  float* c,
                  std::size_t rows,
                  std::size_t inner,
                  std::size_t columns) {
    constexpr std::size_t kRows = 4;
    std::size_t row = 0;
    for (; row + kRows <= rows; row += kRows)
        multiply_rows<kRows>(a + row * a_stride, a_stride, b, c + row * columns, inner, columns);
    for (; row < rows; ++row)
        multiply_rows<1>(a + row * a_stride, a_stride, b, c + row * columns, inner, columns);
}

float exponentials(std::span<float> weights, float largest) {
    std::size_t const lanes = hn::Lanes(kF32);
    Vec const top = hn::Set(kF32, largest);
    Vec sums = hn::Zero(kF32);
    std::size_t i = 0;
    for (; i + lanes <= weights.size(); i += lanes) {
        Vec const weight = hn::Exp(kF32, hn::Sub(hn::LoadU(kF32, weights.data() + i), top));
        hn::StoreU(weight, kF32, weights.data() + i);
        sums = hn::Add(sums, weight);
    }
    float sum = hn::GetLane(hn::SumOfLanes(kF32, sums));
    for (; i < weights.size(); ++i) {
        weights[i] = hn::GetLane(hn::Exp(kF32, hn::Set(kF32, weights[i] - largest)));
        sum += weights[i];
    }
    return sum;
}

}  // namespace
}  // namespace dkv::offline::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dkv::offline {
namespace {

HWY_EXPORT(multiply_add);
HWY_EXPORT(exponentials);

}  // namespace

void multiply_add(float const* a,
                  std::size_t a_stride,
                  float const* b,
                  float* c,
                  std::size_t rows,
                  std::size_t inner,
                  std::size_t columns) {
    HWY_DYNAMIC_DISPATCH(multiply_add)(a, a_stride, b, c, rows, inner, columns);
}

float exponentials(std::span<float> weights, float largest) {
    return HWY_DYNAMIC_DISPATCH(exponentials)(weights, largest);
}

}  // namespace dkv::offline
#endif
