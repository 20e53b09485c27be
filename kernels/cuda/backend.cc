#include "kernels/backend.h"

#include <algorithm>
#include <string>

#include "kernels/cuda/ops.h"
#include "protocol/cuda/cuda_try.h"
#include "protocol/cuda/device.h"

namespace dkv {
namespace {

using cuda::Queue;

class DeviceBuffer final : public BackendBuffer {
public:
    DeviceBuffer(std::byte* data, std::size_t bytes, Queue& queue)
        : data_(data), bytes_(bytes), queue_(queue) {}
    /// Stream-ordered: what is queued may still use it.
    ~DeviceBuffer() override { static_cast<void>(cudaFreeAsync(data_, queue_.stream())); }
    DeviceBuffer(DeviceBuffer const&) = delete;
    DeviceBuffer& operator=(DeviceBuffer const&) = delete;
    std::span<std::byte> bytes() noexcept override { return {data_, bytes_}; }

private:
    std::byte* data_;
    std::size_t bytes_;
    Queue& queue_;
};

class CudaBackend final : public Backend {
public:
    CudaBackend(std::unique_ptr<Queue> queue, std::string name)
        : queue_(std::move(queue)), name_(std::move(name)) {}

    std::string_view name() const noexcept override { return name_; }

    Result<std::unique_ptr<BackendBuffer>> allocate(std::size_t bytes) override {
        void* data = nullptr;
        auto const status =
            cudaMallocAsync(&data, std::max<std::size_t>(bytes, 1), queue_->stream());
        if (status == cudaErrorMemoryAllocation) {
            static_cast<void>(cudaGetLastError());
            return Error{ErrorCode::LimitExceeded,
                         "not enough device memory for " + std::to_string(bytes) + " bytes"};
        }
        DKV_CUDA_TRY(status);
        auto buffer = std::make_unique<DeviceBuffer>(static_cast<std::byte*>(data), bytes, *queue_);
        if (bytes != 0) DKV_CUDA_TRY(cudaMemsetAsync(data, 0, bytes, queue_->stream()));
        return std::unique_ptr<BackendBuffer>(std::move(buffer));
    }

    Result<void> upload(std::span<std::byte const> source, std::span<std::byte> target) override {
        DKV_TRY(check_sizes(source, target));
        if (!source.empty())
            DKV_CUDA_TRY(cudaMemcpyAsync(target.data(), source.data(), source.size(),
                                         cudaMemcpyHostToDevice, queue_->stream()));
        return {};
    }
    Result<void> download(std::span<std::byte const> source, std::span<std::byte> target) override {
        DKV_TRY(check_sizes(source, target));
        if (!source.empty())
            DKV_CUDA_TRY(cudaMemcpyAsync(target.data(), source.data(), source.size(),
                                         cudaMemcpyDeviceToHost, queue_->stream()));
        return queue_->synchronize();
    }

    Result<void> score(ScoreArgs const& args) override {
        DKV_TRY(refuse_paged(args.keys));
        return cuda::score(args, *queue_);
    }
    Result<void> accumulate(AccumulateArgs const& args) override {
        DKV_TRY(refuse_paged(args.keys));
        return cuda::accumulate(args, *queue_);
    }
    Result<void> key_score(KeyScoreArgs const& args) override {
        return cuda::key_score(args, *queue_);
    }
    Result<void> pool(PoolArgs const& args) override { return cuda::pool(args, *queue_); }
    Result<void> select(SelectArgs const& args) override { return cuda::select(args, *queue_); }
    Result<void> sum(SumArgs const& args) override { return cuda::sum(args, *queue_); }
    Result<void> tally(TallyArgs const& args) override { return cuda::tally(args, *queue_); }
    Result<void> gather(GatherArgs const& args) override { return cuda::gather(args, *queue_); }
    Result<void> synchronize() override { return queue_->synchronize(); }

private:
    static Result<void> refuse_paged(RowsView const& keys) {
        if (!keys.paged()) return {};
        return Error{ErrorCode::Unsupported, "paged keys are scored on a CPU only"};
    }
    static Result<void> check_sizes(std::span<std::byte const> source,
                                    std::span<std::byte> target) {
        if (source.size() == target.size()) return {};
        return Error{ErrorCode::InvalidArgument, "target has " + std::to_string(target.size()) +
                                                     " bytes, source " +
                                                     std::to_string(source.size())};
    }

    std::unique_ptr<Queue> queue_;
    std::string name_;
};

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(CudaOptions const& options) {
    auto const all = DKV_TRY(cuda::devices());
    std::string const uuid = options.device.empty() ? all.front().uuid : options.device;
    auto const device = DKV_TRY(cuda::find_device(uuid));
    DKV_TRY(cuda::use_device(uuid));
    auto queue = DKV_TRY(Queue::create());
    std::string name = "cuda (" + device.name + ", sm_" + std::to_string(device.major) +
                       std::to_string(device.minor) + ")";
    return std::unique_ptr<Backend>(
        std::make_unique<CudaBackend>(std::move(queue), std::move(name)));
}

}  // namespace dkv
