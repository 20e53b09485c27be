// How every kernel is declared and launched. For .cu files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <cuda_runtime.h>

#include "protocol/device/cuda_try.h"

// Dynamic shared memory, by name; the emulation hands out its own.
#ifndef CUDAEMU
#define DKV_DYNAMIC_SHARED(type, name)                            \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    type* const name = reinterpret_cast<type*>(name##_bytes)
#else
#define DKV_DYNAMIC_SHARED(type, name) EXTERN_SHARED(type, name)
#endif

// static: no two files' instantiations are merged, and the emulation's sanitizer then sees the ends
// of their static shared arrays.
#define DKV_KERNEL static __global__

namespace dkv::cuda {

inline constexpr unsigned kWarpLanes = 32;
inline constexpr unsigned kAllLanes = 0xffffffffU;

/// Blocks of a one-dimensional grid. Errors: LimitExceeded when no grid has that many.
inline Result<unsigned> grid_of(std::uint64_t blocks) {
    constexpr std::uint64_t kBlocksMax = 0x7fffffffU;
    if (blocks <= kBlocksMax) return static_cast<unsigned>(blocks);
    return Error{ErrorCode::LimitExceeded, "a kernel would need " + std::to_string(blocks) +
                                               " blocks, more than " + std::to_string(kBlocksMax)};
}

/// The form that nvcc and the emulation have in common; never <<<>>>. A grid without blocks is a
/// launch error: callers return before.
template <class... Parameters, class... Arguments>
Result<void> launch(void (*kernel)(Parameters...),
                    dim3 grid,
                    dim3 block,
                    std::size_t shared_bytes,
                    cudaStream_t stream,
                    Arguments&&... arguments) {
    if (shared_bytes > std::size_t{48} << 10U)
        DKV_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes)));
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    DKV_CUDA_TRY(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
    DKV_CUDA_TRY(cudaGetLastError());
    return {};
}

}  // namespace dkv::cuda
