// cudaMalloc, page-locked and managed memory, and what is known of a pointer.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>

#include "tools/cuda_emu/src/capture.h"
#include "tools/cuda_emu/src/memory.h"
#include "tools/cuda_emu/src/stream.h"

namespace cudaemu {
namespace {

constexpr std::size_t kHostAlignment = 256;

cudaError_t allocate(void** result, std::size_t bytes) {
    if (result == nullptr) return cudaErrorInvalidValue;
    *result = nullptr;
    if (bytes == 0) return cudaSuccess;
    int const ordinal = current_device();
    if (!fits(ordinal, bytes)) return cudaErrorMemoryAllocation;
    auto file = MemoryFile::create(rounded(bytes, page_bytes()));
    Allocation made;
    made.device = ordinal;
    if (file == nullptr || !map_file(std::move(file), 0, bytes, made))
        return cudaErrorMemoryAllocation;
    std::memset(made.base, 0xFF, bytes);
    used_bytes(ordinal) += bytes;
    *result = insert(std::move(made)).base;
    return cudaSuccess;
}

cudaError_t allocate_host(void** result, std::size_t bytes, Kind kind) {
    if (result == nullptr) return cudaErrorInvalidValue;
    *result = nullptr;
    if (bytes == 0) return cudaSuccess;
    Allocation made;
    made.kind = kind;
    made.device = current_device();
    made.base =
        static_cast<std::byte*>(std::aligned_alloc(kHostAlignment, rounded(bytes, kHostAlignment)));
    if (made.base == nullptr) return cudaErrorMemoryAllocation;
    made.bytes = bytes;
    std::memset(made.base, 0xFF, bytes);
    *result = insert(std::move(made)).base;
    return cudaSuccess;
}

cudaError_t release(void* address, Lock& lock) {
    if (address == nullptr) return cudaSuccess;
    Allocation const* found = find_base(address);
    if (found == nullptr || found->free_queued) return cudaErrorInvalidValue;
    // Memory of a pool is freed without waiting for anybody: the caller has synchronized.
    if (found->kind == Kind::Device || found->kind == Kind::Managed) finish_everything(lock);
    Allocation* const now = find_base(address);
    if (now == nullptr || now->free_queued) return cudaErrorInvalidValue;
    switch (now->kind) {
        case Kind::Pool: give_back(*now); return cudaSuccess;
        case Kind::Device:
        case Kind::PoolImported: release_allocation(*now); return cudaSuccess;
        case Kind::Managed:
            release_allocation(*now);
            std::free(address);
            return cudaSuccess;
        default: return cudaErrorInvalidValue;
    }
}

cudaError_t describe(cudaPointerAttributes* result, void const* address) {
    *result = {};
    Allocation const* const found = find(address);
    result->type = cudaMemoryTypeUnregistered;
    result->device = cudaInvalidDeviceId;
    result->hostPointer = const_cast<void*>(address);
    if (found == nullptr) return cudaSuccess;
    result->device = found->device;
    result->devicePointer = const_cast<void*>(address);
    switch (found->kind) {
        case Kind::Host:
        case Kind::Registered: result->type = cudaMemoryTypeHost; break;
        case Kind::Managed: result->type = cudaMemoryTypeManaged; break;
        default: result->type = cudaMemoryTypeDevice; result->hostPointer = nullptr;
    }
    return cudaSuccess;
}

}  // namespace
}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

cudaError_t cudaMalloc(void** address, std::size_t bytes) {
    return call_unsafe([&](Lock&) { return allocate(address, bytes); });
}
cudaError_t cudaFree(void* address) {
    return call_unsafe([&](Lock& lock) { return release(address, lock); });
}
cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
    return call_unsafe([&](Lock&) { return allocate_host(address, bytes, Kind::Host); });
}
cudaError_t cudaHostAlloc(void** address, std::size_t bytes, unsigned /*flags*/) {
    return call_unsafe([&](Lock&) { return allocate_host(address, bytes, Kind::Host); });
}
cudaError_t cudaMallocManaged(void** address, std::size_t bytes, unsigned /*flags*/) {
    return call_unsafe([&](Lock&) { return allocate_host(address, bytes, Kind::Managed); });
}
cudaError_t cudaFreeHost(void* address) {
    return call_unsafe([&](Lock& lock) {
        if (address == nullptr) return cudaSuccess;
        Allocation* const found = find_base(address);
        if (found == nullptr || found->kind != Kind::Host) return cudaErrorInvalidValue;
        finish_everything(lock);
        release_allocation(*found);
        std::free(address);
        return cudaSuccess;
    });
}
cudaError_t cudaHostRegister(void* address, std::size_t bytes, unsigned /*flags*/) {
    return call_unsafe([&](Lock&) {
        if (address == nullptr || bytes == 0) return cudaErrorInvalidValue;
        auto* const base = static_cast<std::byte*>(address);
        auto const next = allocations().lower_bound(base);
        if (find(address) != nullptr || (next != allocations().end() && next->first < base + bytes))
            return cudaErrorHostMemoryAlreadyRegistered;
        Allocation made;
        made.kind = Kind::Registered;
        made.device = current_device();
        made.base = base;
        made.bytes = bytes;
        insert(std::move(made));
        return cudaSuccess;
    });
}
cudaError_t cudaHostUnregister(void* address) {
    return call_unsafe([&](Lock& lock) {
        Allocation* const found = find_base(address);
        if (found == nullptr || found->kind != Kind::Registered)
            return cudaErrorHostMemoryNotRegistered;
        finish_everything(lock);
        release_allocation(*found);
        return cudaSuccess;
    });
}
cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
    return call([&](Lock&) {
        Allocation const* const found = find(host);
        if (flags != 0 || found == nullptr || found->on_device()) return cudaErrorInvalidValue;
        *device = host;
        return cudaSuccess;
    });
}
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
    return call([&](Lock&) {
        Device const& mine = device(current_device());
        *total_bytes = mine.bytes;
        *free_bytes = mine.bytes - std::min(mine.bytes, used_bytes(current_device()));
        return cudaSuccess;
    });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, void const* address) {
    return call([&](Lock&) {
        return attributes == nullptr ? cudaErrorInvalidValue : describe(attributes, address);
    });
}

}  // extern "C"
