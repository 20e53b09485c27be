// Device memory of this process's own, of the two kinds that can be exported.
#include <utility>

#include "protocol/device/cuda_try.h"
#include "protocol/device/driver.h"
#include "protocol/device/memory.h"
#include "protocol/device/own_stream.h"

namespace dkv::cuda {
namespace {

// Smaller allocations share a block of the driver's, and who opens one sees its neighbours.
constexpr std::uint64_t kBlockBytes = std::uint64_t{2} << 20U;

Result<std::uint64_t> whole_blocks(std::uint64_t bytes, std::uint64_t block) {
    if (bytes == 0) return Error{ErrorCode::InvalidArgument, "0 bytes of device memory"};
    if (bytes > INT64_MAX - block)
        return Error{ErrorCode::LimitExceeded, "no device has " + std::to_string(bytes) + " bytes"};
    return (bytes + block - 1) / block * block;
}

Error no_room(std::uint64_t bytes) {
    std::size_t left = 0;
    std::size_t all = 0;
    std::string known;
    if (cudaMemGetInfo(&left, &all) == cudaSuccess)
        known = "; " + std::to_string(left) + " of " + std::to_string(all) + " are left";
    static_cast<void>(cudaGetLastError());
    return {ErrorCode::LimitExceeded,
            "the device has no " + std::to_string(bytes) + " bytes" + known};
}

/// And waits for it: another process reads it on a stream of its own.
Result<void> clear(void* base, std::uint64_t bytes) {
    auto const stream = DKV_TRY(OwnStream::create());
    return stream.clear(base, bytes);
}

class Plain final : public DeviceMemory {
public:
    Plain(std::byte* base, std::uint64_t bytes) noexcept : base_(base), bytes_(bytes) {}
    Plain(Plain const&) = delete;
    Plain& operator=(Plain const&) = delete;
    ~Plain() override { static_cast<void>(cudaFree(base_)); }
    std::span<std::byte> bytes() const noexcept override { return {base_, bytes_}; }

private:
    std::byte* const base_;
    std::uint64_t const bytes_;
};

/// What virtual memory management needs, looked up before anything is made.
struct Vmm {
    DriverFunction<PFN_cuMemGetAllocationGranularity_v10020> granularity;
    DriverFunction<PFN_cuMemCreate_v10020> create;
    DriverFunction<PFN_cuMemRelease_v10020> release;
    DriverFunction<PFN_cuMemAddressReserve_v10020> reserve;
    DriverFunction<PFN_cuMemAddressFree_v10020> unreserve;
    DriverFunction<PFN_cuMemMap_v10020> map;
    DriverFunction<PFN_cuMemUnmap_v10020> unmap;
    DriverFunction<PFN_cuMemSetAccess_v10020> set_access;

    static Result<Vmm> find() {
        Vmm vmm{};
        auto const find = [](auto& function, char const* name) -> Result<void> {
            using Function = decltype(function.pointer);
            function = DKV_TRY(driver_function<Function>(name, 10020));
            return {};
        };
        DKV_TRY(find(vmm.granularity, "cuMemGetAllocationGranularity"));
        DKV_TRY(find(vmm.create, "cuMemCreate"));
        DKV_TRY(find(vmm.release, "cuMemRelease"));
        DKV_TRY(find(vmm.reserve, "cuMemAddressReserve"));
        DKV_TRY(find(vmm.unreserve, "cuMemAddressFree"));
        DKV_TRY(find(vmm.map, "cuMemMap"));
        DKV_TRY(find(vmm.unmap, "cuMemUnmap"));
        DKV_TRY(find(vmm.set_access, "cuMemSetAccess"));
        return vmm;
    }
};

/// One physical allocation, mapped whole. Undone in the reverse order, as far as it was done.
class Mapped final : public DeviceMemory {
public:
    Mapped(Vmm const& vmm, std::uint64_t bytes, std::uint64_t whole) noexcept
        : vmm_(vmm), bytes_(bytes), whole_(whole) {}
    Mapped(Mapped const&) = delete;
    Mapped& operator=(Mapped const&) = delete;
    ~Mapped() override {
        if (mapped_)
            static_cast<void>(cudaDeviceSynchronize());  // cudaFree does so, cuMemUnmap not.
        if (mapped_) static_cast<void>(vmm_.unmap(address_, whole_));
        if (address_ != 0) static_cast<void>(vmm_.unreserve(address_, whole_));
        if (created_) static_cast<void>(vmm_.release(handle_));
    }
    Result<void> make(CUmemAllocationProp const& wish) {
        CUresult const created = vmm_.create(&handle_, whole_, &wish, 0ULL);
        if (created == CUDA_ERROR_OUT_OF_MEMORY) return no_room(bytes_);
        DKV_DRIVER_TRY(created);
        created_ = true;
        DKV_DRIVER_TRY(vmm_.reserve(&address_, whole_, std::size_t{0}, CUdeviceptr{0}, 0ULL));
        DKV_DRIVER_TRY(vmm_.map(address_, whole_, std::size_t{0}, handle_, 0ULL));
        mapped_ = true;
        CUmemAccessDesc access{};
        access.location = wish.location;
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        DKV_DRIVER_TRY(vmm_.set_access(address_, whole_, &access, std::size_t{1}));
        return clear(reinterpret_cast<void*>(address_), whole_);
    }
    std::span<std::byte> bytes() const noexcept override {
        return {reinterpret_cast<std::byte*>(address_), bytes_};
    }

private:
    Vmm const vmm_;
    std::uint64_t const bytes_;
    std::uint64_t const whole_;
    CUmemGenericAllocationHandle handle_{};
    CUdeviceptr address_ = 0;
    bool created_ = false;
    bool mapped_ = false;
};

}  // namespace

Result<std::unique_ptr<DeviceMemory>> allocate_device_memory(std::uint64_t bytes) {
    auto const whole = DKV_TRY(whole_blocks(bytes, kBlockBytes));
    void* base = nullptr;
    cudaError_t const status = cudaMalloc(&base, whole);
    if (status == cudaErrorMemoryAllocation) {
        static_cast<void>(cudaGetLastError());
        return no_room(bytes);
    }
    DKV_CUDA_TRY(status);
    std::unique_ptr<DeviceMemory> memory(new Plain(static_cast<std::byte*>(base), bytes));
    DKV_TRY(clear(base, whole));
    return memory;
}

Result<std::unique_ptr<DeviceMemory>> allocate_vmm_memory(std::uint64_t bytes) {
    auto const vmm = DKV_TRY(Vmm::find());
    int ordinal = 0;
    DKV_CUDA_TRY(cudaGetDevice(&ordinal));
    CUmemAllocationProp wish{};
    wish.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wish.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    wish.location.id = ordinal;
    wish.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    std::size_t block = 0;
    DKV_DRIVER_TRY(vmm.granularity(&block, &wish, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    auto const whole = DKV_TRY(whole_blocks(bytes, block));
    auto memory = std::make_unique<Mapped>(vmm, bytes, whole);
    DKV_TRY(memory->make(wish));
    return std::unique_ptr<DeviceMemory>(std::move(memory));
}

}  // namespace dkv::cuda
