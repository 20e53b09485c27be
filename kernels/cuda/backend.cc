#include "kernels/backend.h"

#include <string>
#include <utility>

#include <nvtx3/nvToolsExt.h>

#include "kernels/cuda/backend_first_cause.h"
#include "kernels/cuda/ops.h"
#include "protocol/device/cuda_try.h"
#include "protocol/device/device.h"

namespace dkv {
namespace {

using cuda::Queue;

/// Keeps its queue alive: a buffer may outlive its backend.
class DeviceBuffer final : public BackendBuffer {
public:
    DeviceBuffer(std::byte* data, std::size_t bytes, std::shared_ptr<Queue> queue)
        : data_(data), bytes_(bytes), queue_(std::move(queue)) {}
    ~DeviceBuffer() override { queue_->release(data_); }
    DeviceBuffer(DeviceBuffer const&) = delete;
    DeviceBuffer& operator=(DeviceBuffer const&) = delete;
    std::span<std::byte> bytes() noexcept override { return {data_, bytes_}; }

private:
    std::byte* data_;
    std::size_t bytes_;
    std::shared_ptr<Queue> queue_;
};

class DeviceRoom final : public BackendRoom {
public:
    DeviceRoom(Queue::Room room, std::shared_ptr<Queue> queue)
        : room_(room), queue_(std::move(queue)) {}
    ~DeviceRoom() override { queue_->let_go(room_); }
    DeviceRoom(DeviceRoom const&) = delete;
    DeviceRoom& operator=(DeviceRoom const&) = delete;

private:
    Queue::Room room_;
    std::shared_ptr<Queue> queue_;
};

/// A range in a profiler's timeline; without a profiler, nothing.
class Range {
public:
    explicit Range(char const* name) noexcept { nvtxRangePushA(name); }
    ~Range() { nvtxRangePop(); }
    Range(Range const&) = delete;
    Range& operator=(Range const&) = delete;
};

class CudaBackend final : public Backend {
public:
    CudaBackend(std::shared_ptr<Queue> queue, std::string name)
        : queue_(std::move(queue)), name_(std::move(name)) {}

    std::string_view name() const noexcept override { return name_; }

    Result<std::unique_ptr<BackendBuffer>> allocate(std::size_t bytes) override {
        std::byte* data = nullptr;
        DKV_TRY(run("dkv allocate", [&]() -> Result<void> {
            data = DKV_TRY(queue_->allocate(bytes));
            return {};
        }));
        return std::unique_ptr<BackendBuffer>(std::make_unique<DeviceBuffer>(data, bytes, queue_));
    }

    Result<std::unique_ptr<BackendRoom>> make_room(PromptSizes const& sizes) override {
        std::uint64_t const scratch = DKV_TRY(cuda::scratch_bytes(sizes));
        Queue::Room const room{.scratch_bytes = scratch, .buffers_bytes = sizes.buffers_bytes};
        DKV_TRY(run("dkv make room", [&] { return queue_->hold(room); }));
        return std::unique_ptr<BackendRoom>(std::make_unique<DeviceRoom>(room, queue_));
    }

    Result<void> upload(std::span<std::byte const> source, std::span<std::byte> target) override {
        DKV_TRY(check_sizes(source, target));
        return run("dkv upload", [&] { return queue_->upload(source, target.data()); });
    }
    Result<void> download(std::span<std::byte const> source, std::span<std::byte> target) override {
        DKV_TRY(check_sizes(source, target));
        return run("dkv download", [&]() -> Result<void> {
            if (!source.empty())
                DKV_CUDA_TRY(cudaMemcpyAsync(target.data(), source.data(), source.size(),
                                             cudaMemcpyDeviceToHost, queue_->stream()));
            return queue_->synchronize();
        });
    }

    Result<void> score(ScoreArgs const& args) override {
        return run("dkv score", [&] { return cuda::score(args, *queue_); });
    }
    Result<void> accumulate(AccumulateArgs const& args) override {
        return run("dkv accumulate", [&] { return cuda::accumulate(args, *queue_); });
    }
    Result<void> key_score(KeyScoreArgs const& args) override {
        return run("dkv key_score", [&] { return cuda::key_score(args, *queue_); });
    }
    Result<void> pool(PoolArgs const& args) override {
        return run("dkv pool", [&] { return cuda::pool(args, *queue_); });
    }
    Result<void> select(SelectArgs const& args) override {
        return run("dkv select", [&] { return cuda::select(args, *queue_); });
    }
    Result<void> sum(SumArgs const& args) override {
        return run("dkv sum", [&] { return cuda::sum(args, *queue_); });
    }
    Result<void> surrogate(SurrogateArgs const& args) override {
        return run("dkv surrogate", [&] { return cuda::surrogate(args, *queue_); });
    }
    Result<void> tally(TallyArgs const& args) override {
        return run("dkv tally", [&] { return cuda::tally(args, *queue_); });
    }
    Result<void> gather(GatherArgs const& args) override {
        return run("dkv gather", [&] { return cuda::gather(args, *queue_); });
    }
    Result<void> synchronize() override {
        return run("dkv synchronize", [&] { return queue_->synchronize(); });
    }

private:
    template <class Op>
    Result<void> run(char const* name, Op const& op) {
        Range const range(name);
        return first_cause_.run(op, [this] { return queue_->lost(); });
    }

    static Result<void> check_sizes(std::span<std::byte const> source,
                                    std::span<std::byte> target) {
        if (source.size() == target.size()) return {};
        return Error{ErrorCode::InvalidArgument, "target has " + std::to_string(target.size()) +
                                                     " bytes, source " +
                                                     std::to_string(source.size())};
    }

    std::shared_ptr<Queue> queue_;
    std::string name_;
    cuda::FirstCause first_cause_;
};

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(CudaOptions const& options) {
    auto const all = DKV_TRY(cuda::devices());
    std::string const uuid = options.device.empty() ? all.front().uuid : options.device;
    auto const device = DKV_TRY(cuda::find_device(uuid));
    DKV_TRY(cuda::use_device(uuid));
    auto queue = DKV_TRY(Queue::create(options.pool_bytes));
    std::string name = "cuda (" + device.name + ", sm_" + std::to_string(device.major) +
                       std::to_string(device.minor) + ")";
    return cuda::make_backend_on(std::move(queue), std::move(name));
}

std::unique_ptr<Backend> cuda::make_backend_on(std::shared_ptr<Queue> queue, std::string name) {
    return std::make_unique<CudaBackend>(std::move(queue), std::move(name));
}

}  // namespace dkv
