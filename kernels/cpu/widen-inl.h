// Rows of a cache as dense f32, for each instruction set: included by files that Highway compiles
// several times.
#if defined(DKV_KERNELS_CPU_WIDEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DKV_KERNELS_CPU_WIDEN_INL_H_
#undef DKV_KERNELS_CPU_WIDEN_INL_H_
#else
#define DKV_KERNELS_CPU_WIDEN_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <hwy/highway.h>
#include <limits>

#include "kernels/host.h"
#include "kernels/tensor_view.h"

HWY_BEFORE_NAMESPACE();
namespace dkv::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using Vec = hn::Vec<F32>;

constexpr F32 kF32;
constexpr std::size_t kLanes = hn::MaxLanes(kF32);

HWY_INLINE Vec load_widened(std::uint16_t const* from, Dtype dtype) {
    if (dtype == Dtype::F16) {
        hn::Rebind<hwy::float16_t, F32> const half;
        Vec const value =
            hn::PromoteTo(kF32, hn::LoadU(half, reinterpret_cast<hwy::float16_t const*>(from)));
#if HWY_ARCH_X86 && HWY_TARGET >= HWY_SSE4
        // Without F16C, Highway takes the infinities for 2^16, NaN for what is above.
        Vec const size = hn::Abs(value);
        Vec const infinite = hn::Set(kF32, 65536.0f);
        Vec const number = hn::IfThenElse(
            hn::Eq(size, infinite),
            hn::CopySign(hn::Set(kF32, std::numeric_limits<float>::infinity()), value), value);
        return hn::IfThenElse(hn::Gt(size, infinite), hn::NaN(kF32), number);
#else
        return value;
#endif
    }
    hn::Rebind<std::uint16_t, F32> const bits;
    hn::RebindToUnsigned<F32> const wide;
    return hn::BitCast(kF32, hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(bits, from))));
}

/// `out` is aligned to vectors.
inline void widen_row(std::byte const* row, RowsView const& view, float* out) {
    std::size_t dim = 0;
    bool const aligned = reinterpret_cast<std::uintptr_t>(row) % bytes_of(view.dtype) == 0;
    if (view.dim_stride == 1 && aligned && view.dtype == Dtype::F32) {
        auto const* const elements = reinterpret_cast<float const*>(row);
        for (; dim + kLanes <= view.head_dim; dim += kLanes)
            hn::Store(hn::LoadU(kF32, elements + dim), kF32, out + dim);
    } else if (view.dim_stride == 1 && aligned) {
        auto const* const elements = reinterpret_cast<std::uint16_t const*>(row);
        for (; dim + kLanes <= view.head_dim; dim += kLanes)
            hn::Store(load_widened(elements + dim, view.dtype), kF32, out + dim);
    }
    for (; dim < view.head_dim; ++dim)
        out[dim] = load_f32(row + dim * view.dim_stride * bytes_of(view.dtype), view.dtype);
}

/// The row itself where it is dense f32 already, else a copy in `memory`.
inline float const* dense_row(std::byte const* row, RowsView const& view, float* memory) {
    bool const aligned = reinterpret_cast<std::uintptr_t>(row) % alignof(float) == 0;
    if (view.dtype == Dtype::F32 && view.dim_stride == 1 && aligned)
        return reinterpret_cast<float const*>(row);
    widen_row(row, view, memory);
    return memory;
}

}  // namespace
}  // namespace dkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per target
