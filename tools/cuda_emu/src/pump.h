// The thread that keeps streams going when this process does not wait for them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "tools/cuda_emu/src/stream.h"

namespace cudaemu {

std::vector<std::shared_ptr<Stream>> every_stream();

/// Starts the thread; it looks whenever `doorbell` (shared with other processes) is rung, and often
/// while there is something to look after. `look` raises Stream::wanted; under the lock.
void start_pump(std::atomic<std::uint32_t>& doorbell, void (*look)());
void ring(std::atomic<std::uint32_t>& doorbell);

}  // namespace cudaemu
