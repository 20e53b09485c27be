// Another process's device memory, mapped here: three kinds of it, one registry.
#include <array>
#include <cstring>
#include <vector>

#include "protocol/device/cuda_try.h"
#include "protocol/device/device_guard.h"
#include "protocol/device/driver.h"
#include "protocol/device/imported_pool.h"
#include "protocol/device/memory.h"
#include "protocol/device/registry.h"

namespace dkv::cuda {
namespace {

Error wrong(std::string message) {
    return {ErrorCode::InvalidArgument, std::move(message)};
}

Result<void> check_range(std::uint64_t offset, std::uint64_t bytes, std::uint64_t allocation) {
    if (bytes != 0 && offset <= allocation && bytes <= allocation - offset) return {};
    return wrong(std::to_string(bytes) + " bytes at byte " + std::to_string(offset) +
                 " do not lie in an allocation of " + std::to_string(allocation) + " bytes");
}

Result<void> check_device(int found, int current) {
    if (found == current) return {};
    return wrong("the memory is on device " + std::to_string(found) +
                 " as this process counts them, and the engine said device " +
                 std::to_string(current));
}

Result<int> current_device() {
    int device = 0;
    DKV_CUDA_TRY(cudaGetDevice(&device));
    return device;
}

/// The allocation behind an address, as far as the driver knows it; 0 bytes: it does not say.
struct Behind {
    std::uint64_t base = 0;
    std::uint64_t bytes = 0;
};
Result<Behind> behind(void const* address) {
    auto const range =
        DKV_TRY(driver_function<PFN_cuMemGetAddressRange_v3020>("cuMemGetAddressRange", 3020));
    CUdeviceptr base = 0;
    std::size_t bytes = 0;
    if (range(&base, &bytes, reinterpret_cast<CUdeviceptr>(address)) != CUDA_SUCCESS)
        return Behind{};
    return Behind{base, bytes};
}

/// Of what `what` (a handle, a pointer) opened at `base`: what the driver says, else what the
/// engine claims. Errors: those of check_device(); InvalidArgument when the claim is more than
/// there is.
Result<std::uint64_t> allocation_bytes(char const* what,
                                       void const* base,
                                       std::uint64_t claimed,
                                       int device) {
    cudaPointerAttributes attributes{};
    DKV_CUDA_TRY(cudaPointerGetAttributes(&attributes, base));
    DKV_TRY(check_device(attributes.device, device));
    auto const known = DKV_TRY(behind(base));
    if (known.bytes == 0) return claimed;
    // What was opened may be a part of a block that it shares with others.
    auto const rest = known.bytes - (reinterpret_cast<std::uintptr_t>(base) - known.base);
    if (claimed > rest)
        return wrong("the " + std::string(what) + "'s allocation has " + std::to_string(rest) +
                     " bytes, not " + std::to_string(claimed));
    return rest;
}

class IpcMapping final : public Mapping {
public:
    explicit IpcMapping(int device) noexcept : device_(device) {}
    ~IpcMapping() override {
        if (base_ == nullptr) return;
        auto const guard = DeviceGuard::enter(device_);
        static_cast<void>(cudaIpcCloseMemHandle(base_));
        static_cast<void>(cudaGetLastError());
    }

    Result<void> open(IpcMemory const& memory) {
        cudaIpcMemHandle_t handle{};
        std::memcpy(&handle, memory.handle.data(), sizeof handle);
        void* base = nullptr;
        cudaError_t const status =
            cudaIpcOpenMemHandle(&base, handle, cudaIpcMemLazyEnablePeerAccess);
        if (status == cudaErrorDeviceUninitialized) {
            static_cast<void>(cudaGetLastError());
            return Error{ErrorCode::BadState,
                         "CUDA opens no memory of the process that asks for it (code 201): the "
                         "engine is this process, or it has this process's pid in another pid "
                         "namespace, and needs to share the "
                         "sidecar's"};
        }
        DKV_CUDA_TRY(status);
        base_ = static_cast<std::byte*>(base);
        bytes_ = DKV_TRY(allocation_bytes("handle", base, memory.allocation_bytes, device_));
        return {};
    }

private:
    int const device_;
};

/// Maps the one physical allocation whole; undone in the reverse order, as far as it was done.
class VmmMapping final : public Mapping {
public:
    explicit VmmMapping(int device) noexcept : device_(device) {}
    ~VmmMapping() override {
        if (reserved_ == 0) return;
        auto const guard = DeviceGuard::enter(device_);
        if (base_ != nullptr) static_cast<void>(vmm_.unmap(reserved_, bytes_));
        static_cast<void>(vmm_.unreserve(reserved_, bytes_));
    }

    Result<void> open(VmmMemory const& memory) {
        DKV_TRY(vmm_.find());
        CUmemGenericAllocationHandle handle{};
        auto* const file = reinterpret_cast<void*>(static_cast<std::uintptr_t>(memory.file.get()));
        DKV_DRIVER_TRY(vmm_.import(&handle, file, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
        auto mapped = map(handle, memory.allocation_bytes);
        // The mapping holds the memory from here on.
        static_cast<void>(vmm_.release(handle));
        return mapped;
    }

private:
    struct Vmm {
        DriverFunction<PFN_cuMemImportFromShareableHandle_v10020> import{};
        DriverFunction<PFN_cuMemGetAllocationPropertiesFromHandle_v10020> properties{};
        DriverFunction<PFN_cuMemGetAllocationGranularity_v10020> granularity{};
        DriverFunction<PFN_cuMemRelease_v10020> release{};
        DriverFunction<PFN_cuMemAddressReserve_v10020> reserve{};
        DriverFunction<PFN_cuMemAddressFree_v10020> unreserve{};
        DriverFunction<PFN_cuMemMap_v10020> map{};
        DriverFunction<PFN_cuMemUnmap_v10020> unmap{};
        DriverFunction<PFN_cuMemSetAccess_v10020> set_access{};
        DriverFunction<PFN_cuPointerGetAttribute_v4000> attribute{};

        Result<void> find() {
            attribute = DKV_TRY(
                driver_function<PFN_cuPointerGetAttribute_v4000>("cuPointerGetAttribute", 4000));
            auto const look_up = [](auto& function, char const* name) -> Result<void> {
                using Function = decltype(function.pointer);
                function = DKV_TRY(driver_function<Function>(name, 10020));
                return {};
            };
            DKV_TRY(look_up(import, "cuMemImportFromShareableHandle"));
            DKV_TRY(look_up(properties, "cuMemGetAllocationPropertiesFromHandle"));
            DKV_TRY(look_up(granularity, "cuMemGetAllocationGranularity"));
            DKV_TRY(look_up(release, "cuMemRelease"));
            DKV_TRY(look_up(reserve, "cuMemAddressReserve"));
            DKV_TRY(look_up(unreserve, "cuMemAddressFree"));
            DKV_TRY(look_up(map, "cuMemMap"));
            DKV_TRY(look_up(unmap, "cuMemUnmap"));
            DKV_TRY(look_up(set_access, "cuMemSetAccess"));
            return {};
        }
    };

    Result<void> map(CUmemGenericAllocationHandle handle, std::uint64_t bytes) {
        CUmemAllocationProp made_with{};
        DKV_DRIVER_TRY(vmm_.properties(&made_with, handle));
        // As the engine counts them, perhaps; which one it is is asked of the mapping.
        made_with.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        made_with.location.id = device_;
        std::size_t block = 0;
        DKV_DRIVER_TRY(vmm_.granularity(&block, &made_with, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
        if (block == 0 || bytes % block != 0)
            return wrong("an allocation of " + std::to_string(bytes) +
                         " bytes is not a multiple of the device's blocks of " +
                         std::to_string(block));
        auto const size = static_cast<std::size_t>(bytes);
        DKV_DRIVER_TRY(vmm_.reserve(&reserved_, size, std::size_t{0}, CUdeviceptr{0}, 0ULL));
        bytes_ = bytes;
        // Fails for more bytes than the allocation has: nothing else says how many those are.
        CUresult const status = vmm_.map(reserved_, size, std::size_t{0}, handle, 0ULL);
        if (status == CUDA_ERROR_INVALID_VALUE)
            return wrong("the descriptor's allocation does not have " + std::to_string(bytes) +
                         " bytes");
        DKV_DRIVER_TRY(status);
        base_ = reinterpret_cast<std::byte*>(reserved_);
        int home = 0;
        DKV_DRIVER_TRY(vmm_.attribute(static_cast<void*>(&home),
                                      CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, reserved_));
        DKV_TRY(check_device(home, device_));
        CUmemAccessDesc access{};
        access.location = made_with.location;
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        DKV_DRIVER_TRY(vmm_.set_access(reserved_, size, &access, std::size_t{1}));
        return {};
    }

    int const device_;
    Vmm vmm_;
    CUdeviceptr reserved_ = 0;
};

class PoolMapping final : public Mapping {
public:
    PoolMapping(int device, std::shared_ptr<ImportedPool> pool) noexcept
        : device_(device), pool_(std::move(pool)) {}
    ~PoolMapping() override {
        if (base_ == nullptr) return;
        auto const guard = DeviceGuard::enter(device_);
        static_cast<void>(cudaFree(base_));
        static_cast<void>(cudaGetLastError());
    }

    Result<void> open(PoolMemory const& memory) {
        cudaMemPoolPtrExportData exported{};
        static_assert(sizeof exported == sizeof memory.pointer);
        std::memcpy(&exported, memory.pointer.data(), sizeof exported);
        void* base = nullptr;
        DKV_CUDA_TRY(cudaMemPoolImportPointer(&base, pool_->get(), &exported));
        base_ = static_cast<std::byte*>(base);
        bytes_ = DKV_TRY(allocation_bytes("pointer", base, memory.allocation_bytes, device_));
        return {};
    }

private:
    int const device_;
    std::shared_ptr<ImportedPool> const pool_;  // Before it, the pointer goes.
};

class OpenedRange final : public OpenedMemory {
public:
    OpenedRange(std::shared_ptr<Mapping const> mapping,
                std::uint64_t offset,
                std::uint64_t bytes) noexcept
        : mapping_(std::move(mapping)), bytes_(mapping_->base() + offset, bytes) {}
    std::span<std::byte> bytes() const noexcept override { return bytes_; }

private:
    std::shared_ptr<Mapping const> mapping_;
    std::span<std::byte> bytes_;
};

Result<std::shared_ptr<Mapping const>> lease(IpcMemory const& memory, MappingKey key) {
    key.kind = MappingKind::Ipc;
    key.handle = memory.handle;
    return Registry::instance().lease(key, -1, [&]() -> Result<std::unique_ptr<Mapping>> {
        auto mapping = std::make_unique<IpcMapping>(key.device);
        DKV_TRY(mapping->open(memory));
        return std::unique_ptr<Mapping>(std::move(mapping));
    });
}

Result<void> check_file(UniqueFd const& file) {
    if (file) return {};
    return wrong("no descriptor came with the memory");
}

Result<std::shared_ptr<Mapping const>> lease(VmmMemory const& memory, MappingKey key) {
    DKV_TRY(check_file(memory.file));
    key.kind = MappingKind::Vmm;
    return Registry::instance().lease(key, memory.file.get(),
                                      [&]() -> Result<std::unique_ptr<Mapping>> {
                                          auto mapping = std::make_unique<VmmMapping>(key.device);
                                          DKV_TRY(mapping->open(memory));
                                          return std::unique_ptr<Mapping>(std::move(mapping));
                                      });
}

Result<std::shared_ptr<Mapping const>> lease(PoolMemory const& memory, MappingKey key) {
    DKV_TRY(check_file(memory.pool));
    key.kind = MappingKind::Pool;
    key.handle = memory.pointer;
    return Registry::instance().lease(
        key, memory.pool.get(), [&]() -> Result<std::unique_ptr<Mapping>> {
            auto pool = DKV_TRY(ImportedPool::of(memory.pool, key));
            auto mapping = std::make_unique<PoolMapping>(key.device, std::move(pool));
            DKV_TRY(mapping->open(memory));
            return std::unique_ptr<Mapping>(std::move(mapping));
        });
}

}  // namespace

Result<std::shared_ptr<OpenedMemory const>> open_memory(Exported const& memory,
                                                        std::uint64_t instance,
                                                        std::uint32_t generation) {
    MappingKey key;
    key.instance = instance;
    key.generation = generation;
    key.device = DKV_TRY(current_device());
    return std::visit(
        [&](auto const& one) -> Result<std::shared_ptr<OpenedMemory const>> {
            DKV_TRY(check_range(one.offset, one.bytes, one.allocation_bytes));
            auto mapping = DKV_TRY(lease(one, key));
            // Again, with what the allocation really has: another lease may have claimed less.
            DKV_TRY(check_range(one.offset, one.bytes, mapping->bytes()));
            return std::shared_ptr<OpenedMemory const>(
                std::make_shared<OpenedRange>(std::move(mapping), one.offset, one.bytes));
        },
        memory);
}

std::size_t opened_memory_count() noexcept {
    return Registry::instance().count();
}

}  // namespace dkv::cuda
