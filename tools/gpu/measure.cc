#include "tools/gpu/measure.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/cuda/ops.h"
#include "protocol/device/device.h"
#include "tools/gpu/inputs.h"
#include "tools/gpu/timing.h"

namespace dkv::gpu {
namespace {

constexpr std::uint32_t kPoolKernel = 7;
constexpr unsigned kUntimedRuns = 2;  // Load the code, and let scratch memory grow.

Times times_of(std::vector<double> seconds) {
    std::sort(seconds.begin(), seconds.end());
    return {seconds[seconds.size() / 2], seconds.front(), seconds.back()};
}

/// A stretch of memory larger than any cache. Read, not written: lines that were written would have
/// to be put back while the op runs, at the op's cost.
class Cold {
public:
    static Result<Cold> create(std::uint64_t bytes) {
        Cold cold;
        if (bytes != 0) cold.memory_ = DKV_TRY(cuda::allocate_device_memory(bytes));
        return cold;
    }
    Result<void> read(cuda::Queue& queue) {
        if (memory_ == nullptr) return {};
        SumArgs args;
        args.scores = as<float const>(memory_->bytes());
        args.sums = {&sum_, 1};
        args.heads = 1;
        args.tokens = static_cast<std::uint32_t>(args.scores.size());
        return cuda::sum(args, queue);
    }

private:
    std::unique_ptr<cuda::DeviceMemory> memory_;
    double sum_ = 0;
};

/// The ops on one shape's inputs.
class Bench {
public:
    Bench(Shape const& shape, Options const& options, cuda::Queue& queue, Cold& cold, Inputs inputs)
        : shape_(shape),
          options_(options),
          queue_(queue),
          cold_(cold),
          inputs_(std::move(inputs)),
          kept_(shape.kv_heads, kept_rows(shape)) {
        auto const all = as<float const>(inputs_.scores->bytes());
        for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
            layers_.push_back(all.subspan(layer * columns(shape), columns(shape)));
        for (std::uint32_t head = 0; head < shape.kv_heads; ++head)
            offsets_.push_back(head * kept_rows(shape) * row_bytes(shape));
    }

    Result<void> run(std::function<void(Measured const&)> const& each) {
        auto const& s = shape_;
        double const keys = static_cast<double>(key_bytes(s));
        double const scores = 4.0 * static_cast<double>(columns(s));
        double const kept = static_cast<double>(s.kv_heads) * kept_rows(s);
        double const row = static_cast<double>(row_bytes(s));
        double const window = s.q_heads * row * kWindow;
        double const group = static_cast<double>(s.q_heads) / s.kv_heads;
        struct Op {
            char const* name;
            double bytes;
            std::function<Result<void>()> body;
        };
        std::vector<Op> ops{
            {"score", 2 * keys + window + scores, [&] { return score(); }},
            {"key_norm", keys + scores, [&] { return key_score(KeyMeasure::Norm); }},
            {"key_diff", 2 * keys + scores, [&] { return key_score(KeyMeasure::Difference); }},
            {"pool", 2 * scores, [&] { return pool(); }},
            {"select", scores + 4 * kept, [&] { return select(); }},
            {"sum", scores, [&] { return sum(); }},
            {"tally", s.layers * scores, [&] { return tally(); }},
            {"gather", 2 * kept * row, [&] { return gather(); }},
        };
        if (s.tokens <= kAccumulateTokensMax)
            ops.push_back(
                {"accumulate", keys * (1 + group) + scores, [&] { return accumulate(); }});
        for (Op const& op : ops)
            if (std::string_view(op.name).starts_with(options_.filter))
                each({op.name, shape_, DKV_TRY(time(op.body)), op.bytes});
        return {};
    }

private:
    Result<Times> time(std::function<Result<void>()> const& body) {
        for (unsigned run = 0; run < kUntimedRuns; ++run)
            DKV_TRY(body());
        DKV_TRY(queue_.synchronize());
        auto laps = DKV_TRY(Laps::create(options_.runs));
        return times_of(DKV_TRY(laps.time(
            queue_, [&] { return cold_.read(queue_); }, body)));
    }

    RowsView rows(cuda::DeviceMemory const& memory,
                  std::uint32_t heads,
                  std::uint32_t tokens) const {
        RowsView view =
            dense_rows(memory.bytes().data(), shape_.dtype, heads, tokens, shape_.head_dim);
        view.place = Place::Device;
        return view;
    }
    RowsView keys() const { return rows(*inputs_.keys, shape_.kv_heads, shape_.tokens); }
    std::span<float> written() const {
        return as<float>(inputs_.out->bytes()).first(columns(shape_));
    }

    Result<void> score() {
        ScoreArgs args;
        args.queries = rows(*inputs_.queries, shape_.q_heads, kWindow);
        args.keys = keys();
        args.scores = written();
        return cuda::score(args, queue_);
    }
    Result<void> accumulate() {
        AccumulateArgs args;
        args.queries = rows(*inputs_.queries, shape_.q_heads, shape_.tokens);
        args.keys = keys();
        args.scores = written();
        args.window = kWindow;
        return cuda::accumulate(args, queue_);
    }
    Result<void> key_score(KeyMeasure what) {
        KeyScoreArgs args;
        args.keys = keys();
        args.scores = written();
        args.window = kWindow;
        args.measure = what;
        return cuda::key_score(args, queue_);
    }
    Result<void> pool() {
        PoolArgs args;
        args.scores = layers_.front();
        args.out = written();
        args.heads = shape_.kv_heads;
        args.tokens = shape_.tokens - kWindow;
        args.kernel = kPoolKernel;
        return cuda::pool(args, queue_);
    }
    Result<void> select() {
        SelectArgs args;
        args.scores = layers_.front();
        args.keep = kept_;
        args.ids = as<std::int32_t>(inputs_.out->bytes())
                       .first(std::size_t{shape_.kv_heads} * kept_rows(shape_));
        args.tokens = shape_.tokens - kWindow;
        return cuda::select(args, queue_);
    }
    Result<void> sum() {
        sums_.resize(shape_.kv_heads);
        SumArgs args;
        args.scores = layers_.front();
        args.sums = sums_;
        args.heads = shape_.kv_heads;
        args.tokens = shape_.tokens - kWindow;
        return cuda::sum(args, queue_);
    }
    Result<void> tally() {
        counts_.resize(layers_.size() * shape_.kv_heads);
        TallyArgs args;
        args.layers = layers_;
        args.counts = counts_;
        args.heads = shape_.kv_heads;
        args.tokens = shape_.tokens - kWindow;
        args.total = std::uint64_t{layers_.size()} * shape_.kv_heads * kept_rows(shape_);
        return cuda::tally(args, queue_);
    }
    Result<void> gather() {
        GatherArgs args;
        args.source = keys();
        args.ids = as<std::int32_t const>(inputs_.ids->bytes())
                       .first(std::size_t{shape_.kv_heads} * kept_rows(shape_));
        args.lengths = kept_;
        args.out = inputs_.out->bytes().first(args.ids.size() * row_bytes(shape_));
        args.out_offsets = offsets_;
        return cuda::gather(args, queue_);
    }

    Shape const& shape_;
    Options const& options_;
    cuda::Queue& queue_;
    Cold& cold_;
    Inputs inputs_;
    std::vector<std::span<float const>> layers_;
    std::vector<std::uint32_t> kept_;
    std::vector<std::uint64_t> offsets_;
    std::vector<double> sums_;
    std::vector<std::uint64_t> counts_;
};

Result<std::unique_ptr<cuda::Queue>> queue_on_first_device() {
    auto const devices = DKV_TRY(cuda::devices());
    DKV_TRY(cuda::use_device(devices.front().uuid));
    return cuda::Queue::create(CudaOptions{}.pool_bytes);
}

/// Repeats `work`, waited for, for so long, and once at least.
template <class Work>
Result<void> keep_busy(cuda::Queue& queue, double for_seconds, Work const& work) {
    auto const begin = std::chrono::steady_clock::now();
    std::chrono::duration<double> const least(for_seconds);
    do {
        DKV_TRY(work());
        DKV_TRY(queue.synchronize());
    } while (std::chrono::steady_clock::now() - begin < least);
    return {};
}

Result<double> attribute(int device, cudaDeviceAttr which) {
    int value = 0;
    DKV_CUDA_TRY(cudaDeviceGetAttribute(&value, which, device));
    return static_cast<double>(value);
}

}  // namespace

Result<Peaks> peaks() {
    auto const devices = DKV_TRY(cuda::devices());
    int const device = devices.front().ordinal;
    double const kilohertz = DKV_TRY(attribute(device, cudaDevAttrClockRate));
    double const memory_kilohertz = DKV_TRY(attribute(device, cudaDevAttrMemoryClockRate));
    double const bus_bits = DKV_TRY(attribute(device, cudaDevAttrGlobalMemoryBusWidth));
    double const l2 = DKV_TRY(attribute(device, cudaDevAttrL2CacheSize));
    // Two transfers a clock, in bytes.
    return Peaks{kilohertz * 1e3, 2 * memory_kilohertz * 1e3 * bus_bits / 8,
                 static_cast<std::uint64_t>(l2)};
}

Result<double> copy_rate(Options const& options) {
    auto const queue = DKV_TRY(queue_on_first_device());
    auto const source = DKV_TRY(cuda::allocate_device_memory(options.copy_bytes));
    auto const target = DKV_TRY(cuda::allocate_device_memory(options.copy_bytes));
    DKV_CUDA_TRY(cudaDeviceSynchronize());
    auto const copy = [&]() -> Result<void> {
        DKV_CUDA_TRY(cudaMemcpyAsync(target->bytes().data(), source->bytes().data(),
                                     options.copy_bytes, cudaMemcpyDeviceToDevice,
                                     queue->stream()));
        return {};
    };
    DKV_TRY(keep_busy(*queue, options.warm_seconds, copy));
    auto laps = DKV_TRY(Laps::create(options.runs));
    auto const seconds = DKV_TRY(laps.time(
        *queue, []() -> Result<void> { return {}; }, copy));
    double const median = times_of(seconds).median;
    if (median <= 0) return Error{ErrorCode::Device, "a copy took no time by the device's clock"};
    return 2.0 * static_cast<double>(options.copy_bytes) / median;
}

Result<void> measure(Options const& options, std::function<void(Measured const&)> const& each) {
    auto const queue = DKV_TRY(queue_on_first_device());
    auto cold = DKV_TRY(Cold::create(options.cold_bytes));
    for (Shape const& shape : options.shapes) {
        auto inputs = DKV_TRY(Inputs::create(shape));
        DKV_CUDA_TRY(cudaDeviceSynchronize());  // They were written on another stream.
        // Meanwhile the device was idle, and its clocks went down.
        DKV_TRY(keep_busy(*queue, options.warm_seconds, [&] { return cold.read(*queue); }));
        DKV_TRY(Bench(shape, options, *queue, cold, std::move(inputs)).run(each));
    }
    return {};
}

}  // namespace dkv::gpu
