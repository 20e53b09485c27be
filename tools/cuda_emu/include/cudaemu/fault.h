// For tests: what a kernel that reads past its memory does to a real device.
#pragma once

#include <cuda_runtime_api.h>

namespace cudaemu {

/// From here on every call of this process fails with `error`, as CUDA's do after a failed kernel;
/// nothing but the process's end ends it. cudaSuccess ends it, for the next test.
void lose_device(cudaError_t error);

}  // namespace cudaemu
