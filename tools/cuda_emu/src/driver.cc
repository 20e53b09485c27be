// The driver's functions, handed out by name as cudaGetDriverEntryPointByVersion does: a program
// that uses them is not linked to a driver.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <span>

#include <cuda.h>
#include <cudaTypedefs.h>

#include "tools/cuda_emu/src/context.h"
#include "tools/cuda_emu/src/errors.h"
#include "tools/cuda_emu/src/memory.h"
#include "tools/cuda_emu/src/stream.h"
#include "tools/cuda_emu/src/vmm.h"

namespace cudaemu {
namespace {

void* pointer(CUdeviceptr address) {
    return reinterpret_cast<void*>(address);
}

CUresult address_range(CUdeviceptr* base, std::size_t* bytes, CUdeviceptr address) {
    return drive_in_context([&](Lock&) {
        Allocation const* const found = find(pointer(address));
        if (found == nullptr || !found->on_device()) return CUDA_ERROR_NOT_FOUND;
        // Small allocations share a block, and who opens one has all of that.
        std::byte* const begin =
            found->kind == Kind::Imported ? found->map + page_bytes() : found->base;
        if (base != nullptr) *base = reinterpret_cast<CUdeviceptr>(begin);
        if (bytes != nullptr) *bytes = static_cast<std::size_t>(found->base + found->bytes - begin);
        return CUDA_SUCCESS;
    });
}

template <class T>
CUresult give(void* result, T value) {
    std::ranges::copy(std::as_bytes(std::span(&value, 1)), static_cast<std::byte*>(result));
    return CUDA_SUCCESS;
}

unsigned handle_types(Allocation const& allocation) {
    if (allocation.kind == Kind::Vmm) return allocation.vmm->properties.requestedHandleTypes;
    bool const pooled = allocation.kind == Kind::Pool && is_exportable(*allocation.pool);
    return pooled ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : CU_MEM_HANDLE_TYPE_NONE;
}

CUresult attribute(void* result,
                   CUpointer_attribute which,
                   Allocation const& found,
                   void* address) {
    bool const host = !found.on_device() && found.kind != Kind::Managed;
    std::byte* range = found.base;
    std::size_t range_bytes = found.bytes;
    if (found.kind == Kind::Vmm) vmm::reservation_of(address, &range, &range_bytes);
    switch (which) {
        case CU_POINTER_ATTRIBUTE_CONTEXT: return give(result, primary_context(found.device));
        case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
            return give(result, host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE);
        case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: return give(result, address);
        case CU_POINTER_ATTRIBUTE_HOST_POINTER:
            return found.on_device() ? CUDA_ERROR_INVALID_VALUE : give(result, address);
        case CU_POINTER_ATTRIBUTE_BUFFER_ID: return give(result, found.id);
        case CU_POINTER_ATTRIBUTE_IS_MANAGED:
            return give(result, unsigned{found.kind == Kind::Managed});
        case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: return give(result, found.device);
        case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
            return give(result, unsigned{found.kind == Kind::Device});
        case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: return give(result, range);
        case CU_POINTER_ATTRIBUTE_RANGE_SIZE: return give(result, range_bytes);
        case CU_POINTER_ATTRIBUTE_MAPPED: return give(result, 1U);
        case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
            return give(result, std::uint64_t{handle_types(found)});
        case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: return give(result, found.pool);
        case CU_POINTER_ATTRIBUTE_MAPPING_SIZE: return give(result, found.bytes);
        case CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR: return give(result, found.base);
        default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}

CUresult pointer_attribute(void* result, CUpointer_attribute which, CUdeviceptr address) {
    return drive([&](Lock&) {
        Allocation const* const found = find(pointer(address));
        if (result == nullptr || found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        return attribute(result, which, *found, pointer(address));
    });
}

/// What is not known of a pointer is zero, and no error.
CUresult pointer_attributes(unsigned count,
                            CUpointer_attribute* which,
                            void** results,
                            CUdeviceptr address) {
    return drive([&](Lock&) {
        Allocation const* const found = find(pointer(address));
        for (unsigned i = 0; i < count; ++i)
            if (found == nullptr ||
                attribute(results[i], which[i], *found, pointer(address)) != CUDA_SUCCESS)
                std::memset(results[i], 0, sizeof(unsigned));
        return CUDA_SUCCESS;
    });
}

CUresult device_uuid(CUuuid* uuid, CUdevice ordinal) {
    return drive([&](Lock&) {
        if (uuid == nullptr || ordinal < 0 || ordinal >= device_count())
            return CUDA_ERROR_INVALID_VALUE;
        *uuid = device(ordinal).uuid;
        return CUDA_SUCCESS;
    });
}

/// A word that other processes may map, too.
template <class Word>
std::atomic_ref<Word> word_at(CUdeviceptr address) {
    return std::atomic_ref<Word>(*reinterpret_cast<Word*>(address));
}

template <class Word>
CUresult write_value(CUstream handle, CUdeviceptr address, Word value, unsigned flags) {
    return drive_in_context([&](Lock& lock) {
        auto const stream = stream_of(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (address % sizeof(Word) != 0 || !is_covered(pointer(address), sizeof(Word)) ||
            (flags & ~unsigned{CU_STREAM_WRITE_VALUE_NO_MEMORY_BARRIER}) != 0)
            return CUDA_ERROR_INVALID_VALUE;
        std::uint64_t const sequence =
            push(stream, lock,
                 {.run = [=] { word_at<Word>(address).store(value); }, .after = {}, .ready = {}});
        // Another process may poll for it, and then this process does not wait for this stream.
        if (stream->done < sequence) pump(stream, sequence);
        return CUDA_SUCCESS;
    });
}

template <class Word>
CUresult wait_value(CUstream handle, CUdeviceptr address, Word value, unsigned flags) {
    return drive_in_context([&](Lock& lock) {
        auto const stream = stream_of(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        unsigned const kind = flags & 3U;
        if (address % sizeof(Word) != 0 || !is_covered(pointer(address), sizeof(Word)) ||
            (flags & ~(3U | CU_STREAM_WAIT_VALUE_FLUSH)) != 0)
            return CUDA_ERROR_INVALID_VALUE;
        using Signed = std::make_signed_t<Word>;
        push(stream, lock,
             {.run = [] {},
              .after = {},
              .ready =
                  [=] {
                      Word const now = word_at<Word>(address).load();
                      switch (kind) {
                          case CU_STREAM_WAIT_VALUE_GEQ:
                              return static_cast<Signed>(now - value) >= 0;
                          case CU_STREAM_WAIT_VALUE_EQ: return now == value;
                          case CU_STREAM_WAIT_VALUE_AND: return (now & value) != 0;
                          default: return static_cast<Word>(~(now | value)) != 0;
                      }
                  }});
        return CUDA_SUCCESS;
    });
}

struct Entry {
    char const* name;
    int since;
    void* function;
};

template <class Function>
void* as(Function function) {
    return reinterpret_cast<void*>(function);
}

Entry const* entry(char const* name) {
    static Entry const entries[] = {
        {"cuGetErrorName", 6000, as<PFN_cuGetErrorName_v6000>(error_name)},
        {"cuGetErrorString", 6000, as<PFN_cuGetErrorString_v6000>(error_text)},
        {"cuMemGetAddressRange", 3020, as<PFN_cuMemGetAddressRange_v3020>(address_range)},
        {"cuPointerGetAttribute", 4000, as<PFN_cuPointerGetAttribute_v4000>(pointer_attribute)},
        {"cuPointerGetAttributes", 7000, as<PFN_cuPointerGetAttributes_v7000>(pointer_attributes)},
        {"cuCtxGetCurrent", 4000, as<PFN_cuCtxGetCurrent_v4000>(get_current_context)},
        {"cuCtxSetCurrent", 4000, as<PFN_cuCtxSetCurrent_v4000>(set_current_context)},
        {"cuCtxCreate", 3020, as<PFN_cuCtxCreate_v3020>(create_context)},
        {"cuCtxDestroy", 4000, as<PFN_cuCtxDestroy_v4000>(destroy_context)},
        {"cuDevicePrimaryCtxGetState", 7000,
         as<PFN_cuDevicePrimaryCtxGetState_v7000>(get_primary_state)},
        {"cuDeviceGetUuid", 9020, as<PFN_cuDeviceGetUuid_v11040>(device_uuid)},
        {"cuStreamWriteValue64", 9000,
         as<PFN_cuStreamWriteValue64_v11070>(write_value<cuuint64_t>)},
        {"cuStreamWaitValue64", 9000, as<PFN_cuStreamWaitValue64_v11070>(wait_value<cuuint64_t>)},
        {"cuStreamWriteValue32", 8000,
         as<PFN_cuStreamWriteValue32_v11070>(write_value<cuuint32_t>)},
        {"cuStreamWaitValue32", 8000, as<PFN_cuStreamWaitValue32_v11070>(wait_value<cuuint32_t>)},
        {"cuMemGetAllocationGranularity", 10020,
         as<PFN_cuMemGetAllocationGranularity_v10020>(vmm::get_granularity)},
        {"cuMemCreate", 10020, as<PFN_cuMemCreate_v10020>(vmm::create)},
        {"cuMemRelease", 10020, as<PFN_cuMemRelease_v10020>(vmm::release)},
        {"cuMemRetainAllocationHandle", 11000,
         as<PFN_cuMemRetainAllocationHandle_v11000>(vmm::retain)},
        {"cuMemGetAllocationPropertiesFromHandle", 10020,
         as<PFN_cuMemGetAllocationPropertiesFromHandle_v10020>(vmm::get_properties)},
        {"cuMemAddressReserve", 10020, as<PFN_cuMemAddressReserve_v10020>(vmm::reserve)},
        {"cuMemAddressFree", 10020, as<PFN_cuMemAddressFree_v10020>(vmm::free_address)},
        {"cuMemMap", 10020, as<PFN_cuMemMap_v10020>(vmm::map)},
        {"cuMemUnmap", 10020, as<PFN_cuMemUnmap_v10020>(vmm::unmap)},
        {"cuMemSetAccess", 10020, as<PFN_cuMemSetAccess_v10020>(vmm::set_access)},
        {"cuMemGetAccess", 10020, as<PFN_cuMemGetAccess_v10020>(vmm::get_access)},
        {"cuMemExportToShareableHandle", 10020,
         as<PFN_cuMemExportToShareableHandle_v10020>(vmm::export_handle)},
        {"cuMemImportFromShareableHandle", 10020,
         as<PFN_cuMemImportFromShareableHandle_v10020>(vmm::import_handle)},
    };
    for (Entry const& each : entries)
        if (std::strcmp(each.name, name) == 0) return &each;
    return nullptr;
}

}  // namespace
}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(char const* symbol,
                                             void** function,
                                             unsigned version,
                                             unsigned long long /*flags*/,
                                             cudaDriverEntryPointQueryResult* status) {
    if (cudaError_t const refused = refusal(); refused != cudaSuccess) return remember(refused);
    if (symbol == nullptr || function == nullptr) return remember(cudaErrorInvalidValue);
    Entry const* const found = entry(symbol);
    bool const old = found != nullptr && version < static_cast<unsigned>(found->since);
    *function = found == nullptr || old ? nullptr : found->function;
    auto const result = found == nullptr ? cudaDriverEntryPointSymbolNotFound
                        : old            ? cudaDriverEntryPointVersionNotSufficent
                                         : cudaDriverEntryPointSuccess;
    if (status != nullptr) {
        *status = result;
        return cudaSuccess;
    }
    return result == cudaDriverEntryPointSuccess ? cudaSuccess : remember(cudaErrorSymbolNotFound);
}

#undef cudaGetDriverEntryPoint
cudaError_t cudaGetDriverEntryPoint(char const* symbol,
                                    void** function,
                                    unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* status) {
    return cudaGetDriverEntryPointByVersion(symbol, function, CUDART_VERSION, flags, status);
}

}  // extern "C"
