// The virtual-memory-management half of the driver API.
#pragma once

#include <cstddef>

#include <cuda.h>

namespace cudaemu::vmm {

CUresult get_granularity(std::size_t* bytes,
                         CUmemAllocationProp const* properties,
                         CUmemAllocationGranularity_flags which);
CUresult create(CUmemGenericAllocationHandle* handle,
                std::size_t bytes,
                CUmemAllocationProp const* properties,
                unsigned long long flags);
CUresult release(CUmemGenericAllocationHandle handle);
CUresult retain(CUmemGenericAllocationHandle* handle, void* address);
CUresult get_properties(CUmemAllocationProp* properties, CUmemGenericAllocationHandle handle);
CUresult reserve(CUdeviceptr* address,
                 std::size_t bytes,
                 std::size_t alignment,
                 CUdeviceptr wish,
                 unsigned long long flags);
CUresult free_address(CUdeviceptr address, std::size_t bytes);
CUresult map(CUdeviceptr address,
             std::size_t bytes,
             std::size_t offset,
             CUmemGenericAllocationHandle handle,
             unsigned long long flags);
CUresult unmap(CUdeviceptr address, std::size_t bytes);
CUresult set_access(CUdeviceptr address,
                    std::size_t bytes,
                    CUmemAccessDesc const* wishes,
                    std::size_t count);
CUresult get_access(unsigned long long* flags, CUmemLocation const* location, CUdeviceptr address);
CUresult export_handle(void* shareable,
                       CUmemGenericAllocationHandle handle,
                       CUmemAllocationHandleType type,
                       unsigned long long flags);
CUresult import_handle(CUmemGenericAllocationHandle* handle,
                       void* shareable,
                       CUmemAllocationHandleType type);

/// The reservation that holds an address: false when there is none. Under the lock.
bool reservation_of(void const* address, std::byte** base, std::size_t* bytes);

}  // namespace cudaemu::vmm
