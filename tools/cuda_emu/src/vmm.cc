#include "tools/cuda_emu/src/vmm.h"

#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>

#include "tools/cuda_emu/src/memory.h"

namespace cudaemu {

VmmHandle::~VmmHandle() {
    if (!imported) used_bytes(device) -= bytes;
}

namespace vmm {
namespace {

constexpr std::size_t kGranularity = std::size_t{2} << 20U;

struct Vmm {
    std::map<std::byte*, std::size_t> reservations;
    std::map<CUmemGenericAllocationHandle, std::shared_ptr<VmmHandle>> handles;
    CUmemGenericAllocationHandle next = 1;
};
Vmm& known() {
    static Vmm& the_vmm = *new Vmm;
    return the_vmm;
}

bool is_granular(std::uint64_t bytes) {
    return bytes != 0 && bytes % kGranularity == 0;
}
std::byte* pointer(CUdeviceptr address) {
    return reinterpret_cast<std::byte*>(address);
}
bool is_valid(CUmemAllocationProp const* properties) {
    return properties != nullptr && properties->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
           properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE &&
           properties->location.id >= 0 && properties->location.id < device_count();
}
std::shared_ptr<VmmHandle> handle_of(CUmemGenericAllocationHandle handle) {
    auto const found = known().handles.find(handle);
    return found == known().handles.end() ? nullptr : found->second;
}
CUmemGenericAllocationHandle keep(std::shared_ptr<VmmHandle> made) {
    made->held = 1;
    CUmemGenericAllocationHandle const handle = known().next++;
    known().handles[handle] = std::move(made);
    return handle;
}

/// Calls `visit` for each mapping of [address, address + bytes), which whole mappings must fill.
template <class Visit>
CUresult for_mappings(CUdeviceptr address, std::size_t bytes, Visit visit) {
    std::byte* const begin = pointer(address);
    std::size_t covered = 0;
    while (covered < bytes) {
        Allocation const* const part = find_base(begin + covered);
        if (part == nullptr || part->kind != Kind::Vmm || part->bytes > bytes - covered)
            return CUDA_ERROR_INVALID_VALUE;
        covered += part->bytes;
    }
    for (covered = 0; covered < bytes;) {
        Allocation& part = *find_base(begin + covered);
        covered += part.bytes;
        visit(part);
    }
    return CUDA_SUCCESS;
}

}  // namespace

bool reservation_of(void const* address, std::byte** base, std::size_t* bytes) {
    auto* const byte = static_cast<std::byte*>(const_cast<void*>(address));
    auto after = known().reservations.upper_bound(byte);
    if (after == known().reservations.begin()) return false;
    auto const& [begin, size] = *std::prev(after);
    if (byte >= begin + size) return false;
    *base = begin;
    *bytes = size;
    return true;
}

CUresult get_granularity(std::size_t* bytes,
                         CUmemAllocationProp const* properties,
                         CUmemAllocationGranularity_flags /*which*/) {
    return drive([&](Lock&) {
        if (bytes == nullptr || !is_valid(properties)) return CUDA_ERROR_INVALID_VALUE;
        *bytes = kGranularity;
        return CUDA_SUCCESS;
    });
}

CUresult create(CUmemGenericAllocationHandle* handle,
                std::size_t bytes,
                CUmemAllocationProp const* properties,
                unsigned long long flags) {
    return drive([&](Lock&) {
        if (handle == nullptr || flags != 0 || !is_granular(bytes) || !is_valid(properties))
            return CUDA_ERROR_INVALID_VALUE;
        if (properties->requestedHandleTypes != CU_MEM_HANDLE_TYPE_NONE &&
            properties->requestedHandleTypes != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
            return CUDA_ERROR_NOT_SUPPORTED;
        int const ordinal = properties->location.id;
        if (!fits(ordinal, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
        auto made = std::make_shared<VmmHandle>();
        made->properties = *properties;
        made->device = ordinal;
        made->file = MemoryFile::create_on(ordinal, bytes);
        made->bytes = bytes;
        used_bytes(ordinal) += bytes;
        if (made->file == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
        // As cudaMalloc's: unwritten memory is NaN.
        void* const memory =
            ::mmap(nullptr, bytes, PROT_WRITE, MAP_SHARED, made->file->descriptor(), 0);
        if (memory == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
        std::memset(memory, 0xFF, bytes);
        ::munmap(memory, bytes);
        *handle = keep(std::move(made));
        return CUDA_SUCCESS;
    });
}

CUresult release(CUmemGenericAllocationHandle handle) {
    return drive([&](Lock&) {
        auto const found = handle_of(handle);
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (--found->held == 0) known().handles.erase(handle);
        return CUDA_SUCCESS;
    });
}

CUresult retain(CUmemGenericAllocationHandle* handle, void* address) {
    return drive([&](Lock&) {
        Allocation const* const found = find(address);
        if (handle == nullptr || found == nullptr || found->kind != Kind::Vmm)
            return CUDA_ERROR_INVALID_VALUE;
        for (auto const& [id, kept] : known().handles)
            if (kept == found->vmm) {
                ++kept->held;
                *handle = id;
                return CUDA_SUCCESS;
            }
        *handle = keep(found->vmm);
        return CUDA_SUCCESS;
    });
}

CUresult get_properties(CUmemAllocationProp* properties, CUmemGenericAllocationHandle handle) {
    return drive([&](Lock&) {
        auto const found = handle_of(handle);
        if (properties == nullptr || found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *properties = found->properties;
        return CUDA_SUCCESS;
    });
}

CUresult reserve(CUdeviceptr* address,
                 std::size_t bytes,
                 std::size_t alignment,
                 CUdeviceptr /*wish*/,
                 unsigned long long flags) {
    return drive([&](Lock&) {
        if (address == nullptr || flags != 0 || !is_granular(bytes) ||
            (alignment & (alignment - 1)) != 0)
            return CUDA_ERROR_INVALID_VALUE;
        std::size_t const step = std::max(alignment, kGranularity);
        void* const wide = ::mmap(nullptr, bytes + step, PROT_NONE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (wide == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
        auto* const begin = static_cast<std::byte*>(wide);
        std::size_t const skip = rounded(reinterpret_cast<std::uintptr_t>(wide), step) -
                                 reinterpret_cast<std::uintptr_t>(wide);
        if (skip != 0) ::munmap(begin, skip);
        if (step != skip) ::munmap(begin + skip + bytes, step - skip);
        known().reservations[begin + skip] = bytes;
        *address = reinterpret_cast<CUdeviceptr>(begin + skip);
        return CUDA_SUCCESS;
    });
}

CUresult free_address(CUdeviceptr address, std::size_t bytes) {
    return drive([&](Lock&) {
        auto const found = known().reservations.find(pointer(address));
        if (found == known().reservations.end() || found->second != bytes)
            return CUDA_ERROR_INVALID_VALUE;
        auto const mapped = allocations().lower_bound(found->first);
        if (mapped != allocations().end() && mapped->first < found->first + bytes)
            return CUDA_ERROR_INVALID_VALUE;
        ::munmap(found->first, bytes);
        known().reservations.erase(found);
        return CUDA_SUCCESS;
    });
}

CUresult map(CUdeviceptr address,
             std::size_t bytes,
             std::size_t offset,
             CUmemGenericAllocationHandle handle,
             unsigned long long flags) {
    return drive([&](Lock&) {
        auto const found = handle_of(handle);
        std::byte* base = nullptr;
        std::size_t size = 0;
        if (found == nullptr || flags != 0 || !is_granular(bytes) || offset != 0 ||
            bytes > found->bytes || address % kGranularity != 0 ||
            !reservation_of(pointer(address), &base, &size) ||
            bytes > static_cast<std::size_t>(base + size - pointer(address)))
            return CUDA_ERROR_INVALID_VALUE;
        auto const next = allocations().lower_bound(pointer(address));
        if (find(pointer(address)) != nullptr ||
            (next != allocations().end() && next->first < pointer(address) + bytes))
            return CUDA_ERROR_INVALID_VALUE;
        if (::mmap(pointer(address), bytes, PROT_NONE, MAP_SHARED | MAP_FIXED,
                   found->file->descriptor(), 0) == MAP_FAILED)
            return CUDA_ERROR_MAP_FAILED;
        Allocation made;
        made.kind = Kind::Vmm;
        made.base = pointer(address);
        made.bytes = bytes;
        made.device = found->device;
        made.protection = PROT_NONE;  // Until cuMemSetAccess.
        made.vmm = found;
        insert(std::move(made));
        return CUDA_SUCCESS;
    });
}

CUresult unmap(CUdeviceptr address, std::size_t bytes) {
    return drive([&](Lock&) {
        return for_mappings(address, bytes, [](Allocation& part) {
            if (::mmap(part.base, part.bytes, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
                       0) == MAP_FAILED)
                std::abort();
            release_allocation(part);
        });
    });
}

CUresult set_access(CUdeviceptr address,
                    std::size_t bytes,
                    CUmemAccessDesc const* wishes,
                    std::size_t count) {
    return drive([&](Lock&) {
        if (wishes == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
        for (std::size_t i = 0; i < count; ++i)
            if (wishes[i].location.id < 0 || wishes[i].location.id >= device_count())
                return CUDA_ERROR_INVALID_DEVICE;
        // Of the device that it lies on, where everything runs here: a peer's access does not
        // matter.
        return for_mappings(address, bytes, [&](Allocation& part) {
            int protection = PROT_NONE;
            for (std::size_t i = 0; i < count; ++i) {
                if (wishes[i].location.id != part.device) continue;
                if (wishes[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READ) protection |= PROT_READ;
                if (wishes[i].flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
                    protection |= PROT_READ | PROT_WRITE;
            }
            part.protection = protection;
            protect(part);
        });
    });
}

CUresult get_access(unsigned long long* flags, CUmemLocation const* location, CUdeviceptr address) {
    return drive([&](Lock&) {
        Allocation const* const found = find(pointer(address));
        if (flags == nullptr || location == nullptr || found == nullptr || found->kind != Kind::Vmm)
            return CUDA_ERROR_INVALID_VALUE;
        *flags = (found->protection & PROT_WRITE) != 0  ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
                 : (found->protection & PROT_READ) != 0 ? CU_MEM_ACCESS_FLAGS_PROT_READ
                                                        : CU_MEM_ACCESS_FLAGS_PROT_NONE;
        return CUDA_SUCCESS;
    });
}

CUresult export_handle(void* shareable,
                       CUmemGenericAllocationHandle handle,
                       CUmemAllocationHandleType type,
                       unsigned long long flags) {
    return drive([&](Lock&) {
        auto const found = handle_of(handle);
        if (shareable == nullptr || found == nullptr || flags != 0 ||
            type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
            found->properties.requestedHandleTypes != type)
            return CUDA_ERROR_INVALID_VALUE;
        int const copy = ::fcntl(found->file->descriptor(), F_DUPFD_CLOEXEC, 0);
        if (copy < 0) return CUDA_ERROR_UNKNOWN;
        std::memcpy(shareable, &copy, sizeof copy);
        return CUDA_SUCCESS;
    });
}

CUresult import_handle(CUmemGenericAllocationHandle* handle,
                       void* shareable,
                       CUmemAllocationHandleType type) {
    return drive([&](Lock&) {
        if (handle == nullptr || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR)
            return CUDA_ERROR_INVALID_VALUE;
        // The descriptor is passed in the pointer, and stays the caller's.
        auto const given = static_cast<int>(reinterpret_cast<std::intptr_t>(shareable));
        struct stat info {};
        if (::fstat(given, &info) != 0 || !is_granular(static_cast<std::uint64_t>(info.st_size)))
            return CUDA_ERROR_INVALID_VALUE;
        int const copy = ::fcntl(given, F_DUPFD_CLOEXEC, 0);
        if (copy < 0) return CUDA_ERROR_UNKNOWN;
        auto made = std::make_shared<VmmHandle>();
        made->file = MemoryFile::adopt(copy);
        made->bytes = static_cast<std::size_t>(info.st_size);
        made->imported = true;
        made->properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
        made->properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
        auto const home = made->file->home();
        if (home.ordinal < 0) return CUDA_ERROR_INVALID_DEVICE;
        made->device = home.ordinal;
        // As it was made: another process may count its devices in another order.
        made->properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        made->properties.location.id = home.ordinal_of_maker;
        *handle = keep(std::move(made));
        return CUDA_SUCCESS;
    });
}

}  // namespace vmm
}  // namespace cudaemu
