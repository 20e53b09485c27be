// An engine's device memory where the engine is the test itself. CUDA opens no handle in the
// process that made it, and opens a descriptor there as anywhere.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <variant>

#include <doctest/doctest.h>

#include "protocol/device/memory.h"
#include "sidecar/memory/descriptors.h"
#include "sidecar/memory/source.h"

namespace dkv::test {

inline std::unique_ptr<cuda::DeviceMemory> own_device_memory(std::uint64_t bytes) {
    auto memory = cuda::allocate_vmm_memory(bytes);
    REQUIRE(memory);
    return std::move(memory).value();
}

/// Sends its descriptor under that ticket, which is good once.
inline CudaVmmSource lend_own(cuda::DeviceMemory const& memory,
                              Descriptors& descriptors,
                              std::uint64_t instance,
                              std::uint64_t ticket) {
    auto exported = cuda::export_memory(memory.bytes().data(), memory.bytes().size());
    REQUIRE(exported);
    auto& vmm = std::get<cuda::VmmMemory>(exported.value());
    REQUIRE(descriptors.put(instance, ticket, std::move(vmm.file)));
    return {.ticket = ticket, .allocation_bytes = vmm.allocation_bytes, .offset = vmm.offset};
}

}  // namespace dkv::test
