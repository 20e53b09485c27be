#include "tools/gpu/pool_memory.h"

#include <cuda_runtime_api.h>

#include "protocol/device/cuda_try.h"

namespace dkv::gpu {
namespace {

class Pooled final : public cuda::DeviceMemory {
public:
    Pooled() = default;
    Pooled(Pooled const&) = delete;
    Pooled& operator=(Pooled const&) = delete;
    ~Pooled() override {
        if (data_ != nullptr) static_cast<void>(cudaFreeAsync(data_, nullptr));
        static_cast<void>(cudaStreamSynchronize(nullptr));
        if (pool_ != nullptr) static_cast<void>(cudaMemPoolDestroy(pool_));
    }
    std::span<std::byte> bytes() const noexcept override {
        return {static_cast<std::byte*>(data_), bytes_};
    }

    Result<void> allocate(int device, std::uint64_t bytes) {
        cudaMemPoolProps properties{};
        properties.allocType = cudaMemAllocationTypePinned;
        properties.handleTypes = cudaMemHandleTypePosixFileDescriptor;
        properties.location.type = cudaMemLocationTypeDevice;
        properties.location.id = device;
        DKV_CUDA_TRY(cudaMemPoolCreate(&pool_, &properties));
        DKV_CUDA_TRY(cudaMallocFromPoolAsync(&data_, bytes, pool_, nullptr));
        DKV_CUDA_TRY(cudaStreamSynchronize(nullptr));
        bytes_ = bytes;
        return {};
    }

private:
    cudaMemPool_t pool_ = nullptr;
    void* data_ = nullptr;
    std::uint64_t bytes_ = 0;
};

}  // namespace

Result<std::unique_ptr<cuda::DeviceMemory>> allocate_pool_memory(std::uint64_t bytes) {
    int device = 0;
    int types = 0;
    DKV_CUDA_TRY(cudaGetDevice(&device));
    DKV_CUDA_TRY(cudaDeviceGetAttribute(&types, cudaDevAttrMemoryPoolSupportedHandleTypes, device));
    if ((types & cudaMemHandleTypePosixFileDescriptor) == 0)
        return Error{ErrorCode::Unavailable, "this device's memory pools cannot be exported"};
    auto memory = std::make_unique<Pooled>();
    DKV_TRY(memory->allocate(device, bytes));
    return std::unique_ptr<cuda::DeviceMemory>(std::move(memory));
}

}  // namespace dkv::gpu
