// A launch: which blocks run, in which order, with which shared memory.
#pragma once

#include <functional>

#include <cuda_runtime.h>

namespace cudaemu {

/// Runs every block on the calling thread, under the device's lock.
void run_grid(cudaLaunchConfig_t const& config,
              void const* kernel,
              std::function<void()> const& body);

/// What a launch would be refused for.
cudaError_t check_launch(cudaLaunchConfig_t const& config, void const* kernel);

}  // namespace cudaemu
