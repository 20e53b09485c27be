#include <algorithm>

#include "kernels/cuda/gather_rows.h"

namespace dkv::cuda {
namespace {

constexpr unsigned kThreads = 256;

/// The first bad id to come is kept.
DKV_KERNEL void __launch_bounds__(kThreads)
    check_blocks_kernel(std::int32_t const* __restrict__ blocks,
                        std::uint32_t table_size,
                        std::uint32_t block_count,
                        Fault* fault) {
    std::uint64_t const step = std::uint64_t{gridDim.x} * kThreads;
    for (std::uint64_t i = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; i < table_size;
         i += step) {
        std::int32_t const block = blocks[i];
        if (block >= 0 && static_cast<std::uint32_t>(block) < block_count) continue;
        if (atomicCAS(&fault->kind, 0U, kBadBlock) != 0U) return;
        fault->limit = block_count;
        fault->index = static_cast<std::uint32_t>(i);
        fault->id = block;
    }
}

}  // namespace

Result<void> check_blocks_later(RowsView const& view, Queue& queue) {
    if (!view.paged() || view.table_size() == 0) return {};
    constexpr std::uint32_t kBlocksMax = 256;  // Each takes entries in turns.
    unsigned const grid = std::min((view.table_size() - 1) / kThreads + 1, kBlocksMax);
    return launch(check_blocks_kernel, grid, kThreads, 0, queue.stream(), view.blocks,
                  view.table_size(), view.block_count, queue.fault());
}

}  // namespace dkv::cuda
