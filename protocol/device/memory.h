// Device memory that crosses processes. No CUDA header is included here.
//
// The engine exports a range of its memory; the sidecar opens what was exported. A legacy IPC
// handle names a whole allocation, and an allocator hands out parts of one: what crosses is always
// handle + offset + bytes, and the process that opens it checks the range again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"

namespace dkv::cuda {

/// Which part of an allocation.
struct MemoryRange {
    std::uint64_t allocation_bytes = 0;
    std::uint64_t offset = 0;  ///< Bytes from the allocation's base.
    std::uint64_t bytes = 0;
};

/// cudaMalloc'ed memory: cudaIpcMemHandle_t.
struct IpcMemory : MemoryRange {
    std::array<std::byte, 64> handle{};
};

/// Virtual-memory-management memory (cuMemCreate, torch's expandable segments) by the POSIX file
/// descriptor of its one physical allocation. Crosses by SCM_RIGHTS.
struct VmmMemory : MemoryRange {
    UniqueFd file;
};

/// Memory of a pool that was made exportable: the pool's descriptor and the pointer's own export.
struct PoolMemory : MemoryRange {
    UniqueFd pool;
    std::array<std::byte, 64> pointer{};
};

using Exported = std::variant<IpcMemory, VmmMemory, PoolMemory>;

/// Describes [data, data + bytes) of the calling process for another one.
///
/// Errors: InvalidArgument when it is not device memory or reaches past its allocation;
/// Unsupported, with the hint that helps, for memory that cannot be exported: VMM memory made
/// without a POSIX handle type ("torch: unset expandable_segments …"), cudaMallocAsync's default
/// pool, managed and host memory, cudaMalloc's where the system shares none (WSL2, Tegra); Device.
Result<Exported> export_memory(void const* data, std::uint64_t bytes);

/// Device memory of this process's own, on the thread's device when it was made. Freed on
/// destruction; never while an importer still holds a lease (the sidecar acknowledges detach).
class DeviceMemory {
public:
    virtual ~DeviceMemory() = default;
    virtual std::span<std::byte> bytes() const noexcept = 0;
};
/// By cudaMalloc: exportable as IpcMemory. Zeroed. Errors: LimitExceeded when the device has
/// less left; Device.
Result<std::unique_ptr<DeviceMemory>> allocate_device_memory(std::uint64_t bytes);
/// The same by cuMemCreate, exportable as VmmMemory: for hosts whose processes share no legacy
/// handles. Errors: those of allocate_device_memory(); Unavailable when the driver is too old for
/// it.
Result<std::unique_ptr<DeviceMemory>> allocate_vmm_memory(std::uint64_t bytes);

/// Another process's memory, mapped here.
class OpenedMemory {
public:
    virtual ~OpenedMemory() = default;
    virtual std::span<std::byte> bytes() const noexcept = 0;
};
/// Opens what another process exported, on the thread's current device. One process-wide registry:
/// the same (instance, generation, handle) is opened once and closed once, however often it is
/// asked for; the same handle of another generation is another allocation. The holder that lets go
/// of it has waited for the work that uses it. Closed by whichever thread lets go last, on the
/// device it was opened on.
///
/// Errors: InvalidArgument when the range does not lie in the allocation (overflow included), or
/// that is another device's;
/// BadState when an IPC handle is of this process's own memory (CUDA's code 201);
/// Device.
Result<std::shared_ptr<OpenedMemory const>> open_memory(Exported const& memory,
                                                        std::uint64_t instance,
                                                        std::uint32_t generation);

/// Mappings open in this process, for status and tests.
std::size_t opened_memory_count() noexcept;

}  // namespace dkv::cuda
