// Legacy IPC handles of cudaMalloc'ed memory: the memfd of another process, by its /proc.
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

#include "tools/cuda_emu/src/memory.h"
#include "tools/cuda_emu/src/stream.h"

namespace cudaemu {
namespace {

// As on a GPU, a handle does not tell an allocation from a later one at its place: the same bytes
// come again.
struct MemoryHandle {
    char magic[8];
    pid_t process;
    int descriptor;
    std::uint64_t bytes;
    char uuid[16];
};
static_assert(sizeof(MemoryHandle) <= sizeof(cudaIpcMemHandle_t));
constexpr char kMemoryMagic[8] = "emmemor";

cudaError_t get(cudaIpcMemHandle_t* result, void* address) {
    Allocation const* const found = find(address);
    if (result == nullptr || found == nullptr || found->kind != Kind::Device)
        return cudaErrorInvalidValue;
    MemoryHandle wire{};
    std::memcpy(wire.magic, kMemoryMagic, sizeof kMemoryMagic);
    wire.process = ::getpid();
    wire.descriptor = found->file->descriptor();
    wire.bytes = found->bytes;
    std::memcpy(wire.uuid, device(found->device).uuid.bytes, sizeof wire.uuid);
    *result = {};
    std::memcpy(result, &wire, sizeof wire);
    return cudaSuccess;
}

/// The device that the memory lies on, as this process numbers it; -1 when it does not see it.
int ordinal_of(char const* uuid) {
    for (int ordinal = 0; ordinal < device_count(); ++ordinal)
        if (std::memcmp(device(ordinal).uuid.bytes, uuid, sizeof(CUuuid)) == 0) return ordinal;
    return -1;
}

cudaError_t open_memory(void** result, cudaIpcMemHandle_t const& wire, unsigned flags) {
    MemoryHandle handle;
    std::memcpy(&handle, &wire, sizeof handle);
    if (result == nullptr || flags != cudaIpcMemLazyEnablePeerAccess ||
        std::memcmp(handle.magic, kMemoryMagic, sizeof kMemoryMagic) != 0)
        return cudaErrorInvalidValue;
    if (handle.process == ::getpid()) return cudaErrorDeviceUninitialized;
    int const ordinal = ordinal_of(handle.uuid);
    if (ordinal < 0) return cudaErrorInvalidDevice;
    std::string const bytes(reinterpret_cast<char const*>(&wire), sizeof wire);
    for (auto& [base, allocation] : allocations())
        if (allocation.kind == Kind::Imported && allocation.handle == bytes) {
            ++allocation.opened;
            *result = base;
            return cudaSuccess;
        }
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.process, handle.descriptor);
    int const descriptor = ::open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return cudaErrorInvalidResourceHandle;
    Allocation made;
    made.kind = Kind::Imported;
    made.device = ordinal;
    made.opened = 1;
    made.handle = bytes;
    if (!map_file(MemoryFile::adopt(descriptor), 0, handle.bytes, made))
        return cudaErrorMapBufferObjectFailed;
    *result = insert(std::move(made)).base;
    return cudaSuccess;
}

cudaError_t close_memory(void* address, Lock& lock) {
    Allocation* found = find_base(address);
    if (found == nullptr || found->kind != Kind::Imported) return cudaErrorInvalidValue;
    if (--found->opened != 0) return cudaSuccess;
    finish_everything(lock);
    found = find_base(address);
    if (found != nullptr && found->opened == 0) release_allocation(*found);
    return cudaSuccess;
}

}  // namespace
}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* address) {
    return call([&](Lock&) { return get(handle, address); });
}
cudaError_t cudaIpcOpenMemHandle(void** address, cudaIpcMemHandle_t handle, unsigned flags) {
    return call([&](Lock&) { return open_memory(address, handle, flags); });
}
cudaError_t cudaIpcCloseMemHandle(void* address) {
    return call([&](Lock& lock) { return close_memory(address, lock); });
}

}  // extern "C"
