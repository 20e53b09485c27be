// Memory pools: one sparse file each, every allocation a range of it that is not used again.
#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <limits>
#include <set>
#include <unistd.h>

#include "tools/cuda_emu/src/memory.h"
#include "tools/cuda_emu/src/stream.h"

struct CUmemPoolHandle_st {
    int device = 0;
    bool exportable = false;
    bool imported = false;
    bool is_default = false;
    std::shared_ptr<cudaemu::MemoryFile> file;
    std::size_t end = 0;
    std::size_t bytes_max = 0;
    std::uint64_t used = 0;
    std::uint64_t used_high = 0;
    std::uint64_t threshold = 0;
    int reuse[3] = {1, 1, 1};
};

namespace cudaemu {
namespace {

struct Pools {
    std::set<cudaMemPool_t> living;
    std::map<int, cudaMemPool_t> by_default;
    std::map<int, cudaMemPool_t> current;
};
Pools& pools() {
    static Pools& the_pools = *new Pools;
    return the_pools;
}

cudaMemPool_t default_pool(int ordinal) {
    cudaMemPool_t& pool = pools().by_default[ordinal];
    if (pool == nullptr) {
        pool = new CUmemPoolHandle_st;
        pool->device = ordinal;
        pool->is_default = true;
        pool->file = MemoryFile::create_on(ordinal, 0);
        pools().living.insert(pool);
    }
    return pool;
}
cudaMemPool_t current_pool(int ordinal) {
    auto const found = pools().current.find(ordinal);
    return found == pools().current.end() ? default_pool(ordinal) : found->second;
}

template <class Body>
cudaError_t with_pool(cudaMemPool_t pool, Body body) {
    return call([&](Lock& lock) {
        return pools().living.contains(pool) ? body(*pool, lock) : cudaErrorInvalidValue;
    });
}

cudaError_t create(cudaMemPool_t* result, cudaMemPoolProps const* wish) {
    if (result == nullptr || wish == nullptr || wish->allocType != cudaMemAllocationTypePinned ||
        wish->location.type != cudaMemLocationTypeDevice || wish->location.id < 0 ||
        wish->location.id >= device_count())
        return cudaErrorInvalidValue;
    if (wish->handleTypes != cudaMemHandleTypeNone &&
        wish->handleTypes != cudaMemHandleTypePosixFileDescriptor)
        return cudaErrorNotSupported;
    auto pool = std::make_unique<CUmemPoolHandle_st>();
    pool->device = wish->location.id;
    pool->exportable = wish->handleTypes != cudaMemHandleTypeNone;
    pool->bytes_max = wish->maxSize;
    pool->file = MemoryFile::create_on(pool->device, 0);
    if (pool->file == nullptr) return cudaErrorMemoryAllocation;
    *result = pool.release();
    pools().living.insert(*result);
    return cudaSuccess;
}

cudaError_t allocate(void** result, std::size_t bytes, CUmemPoolHandle_st& pool) {
    if (result == nullptr) return cudaErrorInvalidValue;
    *result = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (pool.imported) return cudaErrorNotPermitted;
    if (!fits(pool.device, bytes) || (pool.bytes_max != 0 && pool.used + bytes > pool.bytes_max))
        return cudaErrorMemoryAllocation;
    std::size_t const offset = pool.end;
    std::size_t const end = offset + rounded(bytes, page_bytes());
    Allocation made;
    made.kind = Kind::Pool;
    made.device = pool.device;
    made.pool = &pool;
    if (pool.file == nullptr ||
        ::ftruncate(pool.file->descriptor(), static_cast<off_t>(end)) != 0 ||
        !map_file(pool.file, offset, bytes, made))
        return cudaErrorMemoryAllocation;
    std::memset(made.base, 0xFF, bytes);
    pool.end = end;
    pool.used += bytes;
    pool.used_high = std::max(pool.used_high, pool.used);
    used_bytes(pool.device) += bytes;
    *result = insert(std::move(made)).base;
    return cudaSuccess;
}

bool is_used(cudaMemPool_t pool) {
    return std::any_of(allocations().begin(), allocations().end(),
                       [&](auto const& entry) { return entry.second.pool == pool; });
}

}  // namespace

void give_back(Allocation& allocation) {
    cudaMemPool_t const pool = allocation.pool;
    if (allocation.kind == Kind::Pool) {
        allocation.pool->used -= allocation.bytes;
        ::fallocate(allocation.file->descriptor(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(allocation.file_offset),
                    static_cast<off_t>(rounded(allocation.bytes, page_bytes())));
    }
    release_allocation(allocation);
    // Destroyed while this was still to be freed.
    if (pool != nullptr && !pools().living.contains(pool) && !is_used(pool)) delete pool;
}

namespace {

cudaError_t free_later(void* address, cudaStream_t handle, Lock& lock) {
    auto const stream = stream_of(handle);
    if (stream == nullptr) return cudaErrorInvalidResourceHandle;
    if (address == nullptr) return cudaSuccess;
    Allocation* const found = find_base(address);
    bool const may = found != nullptr && !found->free_queued &&
                     (found->kind == Kind::Pool || found->kind == Kind::Device ||
                      found->kind == Kind::PoolImported);
    if (!may) return cudaErrorInvalidValue;
    push(stream, lock,
         {.run =
              [address] {
                  if (Allocation* const now = find_base(address)) give_back(*now);
              },
          .after = {},
          .ready = {}});
    // From here on it counts as freed memory, even before the stream gets there.
    if (Allocation* const waiting = find_base(address)) waiting->free_queued = true;
    return cudaSuccess;
}

cudaError_t attribute(CUmemPoolHandle_st& pool, cudaMemPoolAttr which, void* value, bool set) {
    auto const number = [&](std::uint64_t& field) {
        if (set)
            std::memcpy(&field, value, sizeof field);
        else
            std::memcpy(value, &field, sizeof field);
        return cudaSuccess;
    };
    switch (which) {
        case cudaMemPoolAttrReleaseThreshold: return number(pool.threshold);
        case cudaMemPoolReuseFollowEventDependencies:
        case cudaMemPoolReuseAllowOpportunistic:
        case cudaMemPoolReuseAllowInternalDependencies: {
            int& field = pool.reuse[which - cudaMemPoolReuseFollowEventDependencies];
            if (set)
                std::memcpy(&field, value, sizeof field);
            else
                std::memcpy(value, &field, sizeof field);
            return cudaSuccess;
        }
        case cudaMemPoolAttrReservedMemCurrent:
        case cudaMemPoolAttrUsedMemCurrent: {
            std::uint64_t now = pool.used;
            return set ? cudaErrorInvalidValue : number(now);
        }
        case cudaMemPoolAttrReservedMemHigh:
        case cudaMemPoolAttrUsedMemHigh: {
            if (!set) return number(pool.used_high);
            std::uint64_t wish = 0;
            std::memcpy(&wish, value, sizeof wish);
            if (wish != 0) return cudaErrorInvalidValue;  // It can be reset, not chosen.
            pool.used_high = pool.used;
            return cudaSuccess;
        }
        default: return cudaErrorInvalidValue;
    }
}

struct PointerExport {
    char magic[8];
    std::uint64_t offset;
    std::uint64_t bytes;
};
constexpr char kPoolMagic[8] = "empoolp";

cudaError_t import_pointer(void** result,
                           CUmemPoolHandle_st& pool,
                           cudaMemPoolPtrExportData const* data) {
    PointerExport wire;
    if (result == nullptr || data == nullptr) return cudaErrorInvalidValue;
    std::memcpy(&wire, data, sizeof wire);
    if (!pool.imported || std::memcmp(wire.magic, kPoolMagic, sizeof kPoolMagic) != 0)
        return cudaErrorInvalidValue;
    Allocation made;
    made.kind = Kind::PoolImported;
    made.device = pool.device;
    made.pool = &pool;
    if (!map_file(pool.file, wire.offset, wire.bytes, made)) return cudaErrorMapBufferObjectFailed;
    *result = insert(std::move(made)).base;
    return cudaSuccess;
}

}  // namespace

bool is_exportable(CUmemPoolHandle_st const& pool) {
    return pool.exportable && !pool.imported;
}

}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int ordinal) {
    return call([&](Lock&) {
        if (ordinal < 0 || ordinal >= device_count()) return cudaErrorInvalidDevice;
        *pool = default_pool(ordinal);
        return cudaSuccess;
    });
}
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int ordinal) {
    return call([&](Lock&) {
        if (ordinal < 0 || ordinal >= device_count()) return cudaErrorInvalidDevice;
        *pool = current_pool(ordinal);
        return cudaSuccess;
    });
}
cudaError_t cudaDeviceSetMemPool(int ordinal, cudaMemPool_t pool) {
    return with_pool(pool, [&](CUmemPoolHandle_st& chosen, Lock&) {
        if (chosen.device != ordinal || chosen.imported) return cudaErrorInvalidValue;
        pools().current[ordinal] = pool;
        return cudaSuccess;
    });
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, cudaMemPoolProps const* properties) {
    return call([&](Lock&) { return create(pool, properties); });
}
// Memory that is still allocated keeps the pool alive; it is forgotten here only by name.
cudaError_t cudaMemPoolDestroy(cudaMemPool_t handle) {
    return with_pool(handle, [&](CUmemPoolHandle_st& pool, Lock&) {
        if (pool.is_default) return cudaErrorInvalidValue;
        pools().living.erase(handle);
        std::erase_if(pools().current, [&](auto const& entry) { return entry.second == handle; });
        if (!is_used(handle)) delete handle;
        return cudaSuccess;
    });
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t handle, std::size_t /*bytes*/) {
    return with_pool(handle, [](CUmemPoolHandle_st&, Lock&) { return cudaSuccess; });
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t handle, cudaMemPoolAttr which, void* value) {
    return with_pool(handle, [&](CUmemPoolHandle_st& pool, Lock&) {
        return attribute(pool, which, value, true);
    });
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t handle, cudaMemPoolAttr which, void* value) {
    return with_pool(handle, [&](CUmemPoolHandle_st& pool, Lock&) {
        return attribute(pool, which, value, false);
    });
}
cudaError_t cudaMemPoolSetAccess(cudaMemPool_t handle,
                                 cudaMemAccessDesc const* /*descriptions*/,
                                 std::size_t /*count*/) {
    return with_pool(handle, [](CUmemPoolHandle_st&, Lock&) { return cudaSuccess; });
}
cudaError_t cudaMemPoolGetAccess(cudaMemAccessFlags* flags,
                                 cudaMemPool_t handle,
                                 cudaMemLocation* /*location*/) {
    return with_pool(handle, [&](CUmemPoolHandle_st&, Lock&) {
        *flags = cudaMemAccessFlagsProtReadWrite;
        return cudaSuccess;
    });
}
cudaError_t cudaMallocAsync(void** address, std::size_t bytes, cudaStream_t stream) {
    return call([&](Lock&) {
        auto const on = stream_of(stream);
        if (on == nullptr) return cudaErrorInvalidResourceHandle;
        bool const plain = stream == nullptr || stream == cudaStreamLegacy;
        return allocate(address, bytes, *current_pool(plain ? current_device() : on->device));
    });
}
cudaError_t cudaMallocFromPoolAsync(void** address,
                                    std::size_t bytes,
                                    cudaMemPool_t handle,
                                    cudaStream_t stream) {
    return with_pool(handle, [&](CUmemPoolHandle_st& pool, Lock&) {
        return stream_of(stream) == nullptr ? cudaErrorInvalidResourceHandle
                                            : allocate(address, bytes, pool);
    });
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
    return call([&](Lock& lock) { return free_later(address, stream, lock); });
}
cudaError_t cudaMemPoolExportToShareableHandle(void* handle,
                                               cudaMemPool_t pool_handle,
                                               cudaMemAllocationHandleType type,
                                               unsigned flags) {
    return with_pool(pool_handle, [&](CUmemPoolHandle_st& pool, Lock&) {
        if (handle == nullptr || flags != 0 || type != cudaMemHandleTypePosixFileDescriptor ||
            !is_exportable(pool))
            return cudaErrorInvalidValue;
        int const copy = ::fcntl(pool.file->descriptor(), F_DUPFD_CLOEXEC, 0);
        if (copy < 0) return cudaErrorUnknown;
        std::memcpy(handle, &copy, sizeof copy);
        return cudaSuccess;
    });
}
cudaError_t cudaMemPoolImportFromShareableHandle(cudaMemPool_t* result,
                                                 void* handle,
                                                 cudaMemAllocationHandleType type,
                                                 unsigned flags) {
    return call([&](Lock&) {
        if (result == nullptr || flags != 0 || type != cudaMemHandleTypePosixFileDescriptor)
            return cudaErrorInvalidValue;
        // The descriptor is passed in the pointer, and stays the caller's.
        auto const given = static_cast<int>(reinterpret_cast<std::intptr_t>(handle));
        int const copy = ::fcntl(given, F_DUPFD_CLOEXEC, 0);
        if (copy < 0) return cudaErrorInvalidValue;
        auto pool = std::make_unique<CUmemPoolHandle_st>();
        pool->imported = true;
        pool->file = MemoryFile::adopt(copy);
        pool->device = pool->file->home().ordinal;
        if (pool->device < 0) return cudaErrorInvalidDevice;
        *result = pool.release();
        pools().living.insert(*result);
        return cudaSuccess;
    });
}
cudaError_t cudaMemPoolExportPointer(cudaMemPoolPtrExportData* data, void* address) {
    return call([&](Lock&) {
        Allocation const* const found = find_base(address);
        if (data == nullptr || found == nullptr || found->kind != Kind::Pool ||
            !is_exportable(*found->pool))
            return cudaErrorInvalidValue;
        PointerExport wire{};
        std::memcpy(wire.magic, kPoolMagic, sizeof kPoolMagic);
        wire.offset = found->file_offset;
        wire.bytes = found->bytes;
        *data = {};
        std::memcpy(data, &wire, sizeof wire);
        return cudaSuccess;
    });
}
cudaError_t cudaMemPoolImportPointer(void** address,
                                     cudaMemPool_t handle,
                                     cudaMemPoolPtrExportData* data) {
    return with_pool(handle, [&](CUmemPoolHandle_st& pool, Lock&) {
        return import_pointer(address, pool, data);
    });
}

}  // extern "C"
