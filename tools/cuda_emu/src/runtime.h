// What every function of the emulated API begins with: a driver, the one lock, the last error.
#pragma once

#include <cstddef>
#include <mutex>

#include <cuda.h>
#include <cuda_runtime.h>

namespace cudaemu {

/// Of everything the emulation knows, and of the one block that runs.
using Lock = std::unique_lock<std::mutex>;
std::mutex& device_mutex();

/// Remembers an error for cudaGetLastError; passes it on.
cudaError_t remember(cudaError_t error);

/// Why this process may not call CUDA at all: no driver, no device, or forked after its first call.
cudaError_t refusal();

/// What a kernel's fault left behind, for every call from then on (cudaemu/fault.h).
cudaError_t lost();

/// Gives a thread that has no context device 0's, as the runtime does (context.h).
void bind_context();

/// The body of an API function, under the lock, with a context.
template <class Body>
cudaError_t call(Body body) {
    if (cudaError_t const refused = refusal(); refused != cudaSuccess) return remember(refused);
    bind_context();
    if (cudaError_t const left = lost(); left != cudaSuccess) return remember(left);
    Lock lock(device_mutex());
    return remember(body(lock));
}
/// Of a driver function that needs no context.
template <class Body>
CUresult drive(Body body) {
    if (refusal() != cudaSuccess) return CUDA_ERROR_NOT_INITIALIZED;
    if (lost() != cudaSuccess) return static_cast<CUresult>(lost());
    Lock lock(device_mutex());
    return body(lock);
}
/// Whether the calling thread has one.
bool has_context();
/// Of a driver function that does need one: the driver makes none.
template <class Body>
CUresult drive_in_context(Body body) {
    return drive(
        [&](Lock& lock) { return has_context() ? body(lock) : CUDA_ERROR_INVALID_CONTEXT; });
}

/// The calling thread's device.
int current_device();

/// The visible devices, by ordinal.
struct Device {
    unsigned physical = 0;
    CUuuid uuid{};
    std::size_t bytes = 0;
};
int device_count();
Device const& device(int ordinal);

/// CUDAEMU_STREAMS=lazy: work runs when a caller waits or asks for it, not before.
bool lazy_streams();
/// CUDAEMU_HOST_ACCESS=trap: device memory is inaccessible to the host.
bool traps_host_access();

}  // namespace cudaemu
