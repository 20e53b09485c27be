// What memory is, as CUDA tells it, and how another process gets at it.
#include <cstdio>
#include <cstring>

#include "protocol/device/copy.h"
#include "protocol/device/cuda_try.h"
#include "protocol/device/device_guard.h"
#include "protocol/device/driver.h"
#include "protocol/device/memory.h"

namespace dkv::cuda {
namespace {

struct Allocation {
    CUdeviceptr base = 0;
    MemoryRange range;  ///< The one that is exported.
};

std::string range_text(void const* data, std::uint64_t bytes) {
    std::array<char, 2 + 2 * sizeof data + 1> text{};
    std::snprintf(text.data(), text.size(), "%p", data);
    return std::to_string(bytes) + " bytes at " + text.data();
}

template <class Value>
Result<Value> attribute_of(CUdeviceptr pointer, CUpointer_attribute attribute) {
    auto const get =
        DKV_TRY(driver_function<PFN_cuPointerGetAttribute_v4000>("cuPointerGetAttribute", 4000));
    Value value{};
    DKV_DRIVER_TRY(get(static_cast<void*>(&value), attribute, pointer));
    return value;
}

/// Where the range lies in [base, base + size). Errors: InvalidArgument when it reaches out.
Result<Allocation> allocation_of(CUdeviceptr base,
                                 std::uint64_t size,
                                 void const* data,
                                 std::uint64_t bytes) {
    auto const begin = reinterpret_cast<CUdeviceptr>(data);
    if (begin < base || begin - base > size || bytes > size - (begin - base))
        return Error{ErrorCode::InvalidArgument, range_text(data, bytes) +
                                                     " reach past their allocation of " +
                                                     std::to_string(size) + " bytes"};
    return Allocation{base, {.allocation_bytes = size, .offset = begin - base, .bytes = bytes}};
}

Result<Exported> export_ipc(Allocation const& found) {
    IpcMemory memory{found.range, {}};
    cudaIpcMemHandle_t handle{};
    static_assert(sizeof handle == sizeof memory.handle);
    DKV_CUDA_TRY(cudaIpcGetMemHandle(&handle, reinterpret_cast<void*>(found.base)));
    std::memcpy(memory.handle.data(), &handle, sizeof handle);
    return Exported(memory);
}

Result<Exported> export_pool(cudaMemPool_t pool, Allocation const& found, void const* data) {
    PoolMemory memory{found.range, {}, {}};
    int file = -1;
    // Refused with InvalidValue for a pool that was not made for it, the default one above all.
    if (cudaMemPoolExportToShareableHandle(&file, pool, cudaMemHandleTypePosixFileDescriptor, 0) !=
        cudaSuccess) {
        static_cast<void>(cudaGetLastError());
        return unsupported(
            range_text(data, found.range.bytes) +
            " come from a memory pool (cudaMallocAsync) that cannot be exported: make the pool "
            "with cudaMemHandleTypePosixFileDescriptor, or use cudaMalloc; torch: not "
            "backend:cudaMallocAsync in PYTORCH_ALLOC_CONF, or keep the cache in a "
            "dkv.cuda.DeviceArena");
    }
    memory.pool = UniqueFd(file);
    cudaMemPoolPtrExportData pointer{};
    static_assert(sizeof pointer == sizeof memory.pointer);
    DKV_CUDA_TRY(cudaMemPoolExportPointer(&pointer, reinterpret_cast<void*>(found.base)));
    std::memcpy(memory.pointer.data(), &pointer, sizeof pointer);
    return Exported(std::move(memory));
}

/// Releases what cuMemRetainAllocationHandle retained.
class Retained {
public:
    static Result<Retained> of(void const* data, std::uint64_t bytes) {
        auto const retain = DKV_TRY(driver_function<PFN_cuMemRetainAllocationHandle_v11000>(
            "cuMemRetainAllocationHandle", 11000));
        auto const release =
            DKV_TRY(driver_function<PFN_cuMemRelease_v10020>("cuMemRelease", 10020));
        CUmemGenericAllocationHandle handle{};
        CUresult const status = retain(&handle, const_cast<void*>(data));
        if (status == CUDA_ERROR_INVALID_VALUE)  // Neither legacy IPC's nor VMM's: cudaMalloc's.
            return unsupported(
                range_text(data, bytes) +
                " are device memory that this system shares with no other process (WSL2 and Tegra "
                "share none of cudaMalloc's): use cuMemCreate, as DKV_CUDA_ARENA=vmm does");
        DKV_DRIVER_TRY(status);
        return Retained(handle, release);
    }
    Retained(Retained&& other) noexcept
        : handle_(other.handle_), release_{std::exchange(other.release_.pointer, nullptr)} {}
    Retained& operator=(Retained&&) = delete;
    ~Retained() {
        if (release_.pointer != nullptr) static_cast<void>(release_(handle_));
    }
    CUmemGenericAllocationHandle get() const noexcept { return handle_; }

private:
    using Release = DriverFunction<PFN_cuMemRelease_v10020>;
    Retained(CUmemGenericAllocationHandle handle, Release release) noexcept
        : handle_(handle), release_(release) {}
    CUmemGenericAllocationHandle handle_;
    Release release_;
};

Result<Exported> export_vmm(void const* data, std::uint64_t bytes) {
    auto const retained = DKV_TRY(Retained::of(data, bytes));
    auto const pointer = reinterpret_cast<CUdeviceptr>(data);
    // A reservation may be a row of mappings, each with a descriptor of its own.
    auto const base =
        DKV_TRY(attribute_of<CUdeviceptr>(pointer, CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR));
    auto const size =
        DKV_TRY(attribute_of<std::size_t>(pointer, CU_POINTER_ATTRIBUTE_MAPPING_SIZE));
    auto const allowed =
        DKV_TRY(attribute_of<std::uint64_t>(pointer, CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES));
    if ((allowed & CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == 0)
        return unsupported(
            range_text(data, bytes) +
            " are virtual-memory-management memory without a POSIX handle type, which cannot be "
            "exported; torch: unset expandable_segments:True in PYTORCH_ALLOC_CONF (or "
            "PYTORCH_CUDA_ALLOC_CONF), or keep the cache in a dkv.cuda.DeviceArena");
    auto const found = allocation_of(base, size, data, bytes);
    if (!found)
        return unsupported(range_text(data, bytes) +
                           " span more than one physical allocation (the first has " +
                           std::to_string(size) +
                           " bytes), and a region is one; torch: "
                           "PYTORCH_ALLOC_CONF=expandable_segments:False, "
                           "or keep the cache in a dkv.cuda.DeviceArena");
    auto const share = DKV_TRY(driver_function<PFN_cuMemExportToShareableHandle_v10020>(
        "cuMemExportToShareableHandle", 10020));
    int file = -1;
    DKV_DRIVER_TRY(share(static_cast<void*>(&file), retained.get(),
                         CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0ULL));
    return Exported(VmmMemory{found.value().range, UniqueFd(file)});
}

}  // namespace

// Not cudaPointerGetAttributes: it makes a context on whatever device is the thread's.
Result<int> device_of(void const* data, std::uint64_t bytes) {
    DKV_TRY(check_driver());
    auto const get =
        DKV_TRY(driver_function<PFN_cuPointerGetAttribute_v4000>("cuPointerGetAttribute", 4000));
    auto const pointer = reinterpret_cast<CUdeviceptr>(data);
    unsigned type = 0;
    CUresult const known = get(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, pointer);
    if (known == CUDA_ERROR_INVALID_VALUE)
        return Error{ErrorCode::InvalidArgument,
                     range_text(data, bytes) + " are not device memory"};
    DKV_DRIVER_TRY(known);
    // First: managed memory is of either type.
    if (DKV_TRY(attribute_of<unsigned>(pointer, CU_POINTER_ATTRIBUTE_IS_MANAGED)) != 0)
        return unsupported(range_text(data, bytes) +
                           " are managed memory, which cannot be exported: use cudaMalloc");
    if (type != CU_MEMORYTYPE_DEVICE)
        return unsupported(range_text(data, bytes) +
                           " are pinned host memory, which cannot be exported: use "
                           "dkv_arena_create");
    return attribute_of<int>(pointer, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL);
}

Result<Exported> export_memory(void const* data, std::uint64_t bytes) {
    if (bytes == 0) return Error{ErrorCode::InvalidArgument, "0 bytes to export"};
    auto const guard = DKV_TRY(DeviceGuard::enter(DKV_TRY(device_of(data, bytes))));
    auto const pointer = reinterpret_cast<CUdeviceptr>(data);
    auto const legacy =
        DKV_TRY(attribute_of<int>(pointer, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE));
    auto const pool =
        DKV_TRY(attribute_of<CUmemoryPool>(pointer, CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE));
    if (legacy == 0 && pool == nullptr) return export_vmm(data, bytes);

    // The handle names a whole allocation, of which an allocator may have handed out a part.
    auto const range =
        DKV_TRY(driver_function<PFN_cuMemGetAddressRange_v3020>("cuMemGetAddressRange", 3020));
    CUdeviceptr base = 0;
    std::size_t size = 0;
    DKV_DRIVER_TRY(range(&base, &size, pointer));
    auto const found = DKV_TRY(allocation_of(base, size, data, bytes));
    return pool != nullptr ? export_pool(pool, found, data) : export_ipc(found);
}

}  // namespace dkv::cuda
