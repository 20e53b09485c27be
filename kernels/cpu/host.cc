#include "kernels/host.h"

#include <algorithm>

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/host.cc"
// The order matters.
// clang-format off
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include "kernels/cpu/widen-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace dkv::cpu::HWY_NAMESPACE {
namespace {

void widen(
    RowsView const& view, std::uint32_t head, std::uint32_t row, float* out, std::size_t columns) {
    widen_row(view.row(head, row), view, out);
    std::fill(out + view.head_dim, out + columns, 0.0F);
}

}  // namespace
}  // namespace dkv::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dkv {
namespace cpu {
namespace {

HWY_EXPORT(widen);

}  // namespace
}  // namespace cpu

void widen(
    RowsView const& view, std::uint32_t head, std::uint32_t row, float* out, std::size_t columns) {
    using namespace cpu;
    HWY_DYNAMIC_DISPATCH(widen)(view, head, row, out, columns);
}

}  // namespace dkv
#endif
