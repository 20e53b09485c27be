#include "tools/gpu/measure.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <span>

#include "kernels/backend.h"
#include "kernels/cuda/ops.h"
#include "protocol/cuda/device.h"
#include "protocol/cuda/memory.h"
#include "tools/gpu/timing.h"

namespace dkv::gpu {
namespace {

constexpr std::uint32_t kWindow = 32;
constexpr std::uint32_t kPoolKernel = 7;
constexpr std::size_t kCopiesMax = 16;

using Memory = std::unique_ptr<cuda::DeviceMemory>;

/// What is small and random, of any dtype, and so are its bits.
std::vector<std::byte> random_elements(Dtype dtype, std::size_t count) {
    std::mt19937 random(1);
    std::vector<std::byte> bytes(count * bytes_of(dtype));
    for (std::size_t i = 0; i < count; ++i) {  // Sign, and an exponent that makes it below 2.
        auto const bits = static_cast<std::uint32_t>(random());
        float const value = std::bit_cast<float>((bits & 0x807fffffU) | 0x3f000000U);
        auto const half = static_cast<std::uint16_t>((bits & 0x83ffU) | 0x3800U);
        auto const brain = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16U);
        if (dtype == Dtype::F32)
            std::memcpy(bytes.data() + 4 * i, &value, 4);
        else
            std::memcpy(bytes.data() + 2 * i, dtype == Dtype::F16 ? &half : &brain, 2);
    }
    return bytes;
}

/// Skewed, as attention is.
std::vector<float> random_scores(std::size_t count) {
    std::mt19937 random(2);
    std::lognormal_distribution<float> attention(-9, 2);
    std::vector<float> scores(count);
    std::generate(scores.begin(), scores.end(), [&] { return attention(random); });
    return scores;
}

/// As many copies of `host` in device memory as it takes to be larger than a cache.
class Turns {
public:
    static Result<Turns> create(std::span<std::byte const> host, std::uint64_t cold_bytes) {
        Turns turns;
        std::size_t const wanted = cold_bytes / std::max<std::size_t>(host.size(), 1) + 1;
        for (std::size_t i = 0; i < std::min(wanted, kCopiesMax); ++i) {
            turns.all_.push_back(DKV_TRY(cuda::allocate_device_memory(host.size())));
            DKV_CUDA_TRY(cudaMemcpy(turns.all_.back()->bytes().data(), host.data(), host.size(),
                                    cudaMemcpyHostToDevice));
        }
        return turns;
    }
    std::span<std::byte> next() { return all_[next_++ % all_.size()]->bytes(); }
    std::size_t count() const { return all_.size(); }
    std::span<std::byte> at(std::size_t i) const { return all_[i]->bytes(); }

private:
    std::vector<Memory> all_;
    std::size_t next_ = 0;
};

template <class T>
std::span<T> as(std::span<std::byte> bytes) {
    return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
}

/// One shape's inputs and outputs, and the ops on them.
class Bench {
public:
    Bench(Shape const& shape, Options const& options, cuda::Queue& queue)
        : shape_(shape), options_(options), queue_(queue) {}

    Result<std::vector<Measured>> run() {
        DKV_TRY(make_inputs());
        double const keys = static_cast<double>(key_bytes());
        double const columns = 4.0 * shape_.kv_heads * (shape_.tokens - kWindow);
        double const queries = static_cast<double>(query_bytes());
        double const kept = 2.0 * static_cast<double>(kept_bytes());
        DKV_TRY(add("score", 2 * keys + queries + columns, [&] { return score(false); }));
        DKV_TRY(add("score_lse", keys + queries + columns, [&] { return score(true); }));
        DKV_TRY(add("key_norm", keys + columns, [&] { return key_score(KeyMeasure::Norm); }));
        DKV_TRY(
            add("key_diff", 2 * keys + columns, [&] { return key_score(KeyMeasure::Difference); }));
        DKV_TRY(add("pool", 2 * columns, [&] { return pool(); }));
        DKV_TRY(
            add("select", columns + 4.0 * shape_.kv_heads * kept_rows(), [&] { return select(); }));
        DKV_TRY(add("sum", columns, [&] { return sum(); }));
        DKV_TRY(
            add("tally", columns * static_cast<double>(layers_.size()), [&] { return tally(); }));
        DKV_TRY(add("gather", kept, [&] { return gather(); }));
        if (shape_.tokens <= kAccumulateTokensMax)
            DKV_TRY(add("accumulate", keys * (1 + static_cast<double>(group())) + columns,
                        [&] { return accumulate(); }));
        return std::move(measured_);
    }

private:
    static constexpr std::uint32_t kAccumulateTokensMax = 4096;  // Its work grows by the square.

    std::uint32_t group() const { return shape_.q_heads / shape_.kv_heads; }
    std::uint32_t kept_rows() const { return shape_.tokens / 4; }
    std::uint64_t row_bytes() const { return shape_.head_dim * bytes_of(shape_.dtype); }
    std::uint64_t key_bytes() const {
        return std::uint64_t{shape_.kv_heads} * shape_.tokens * row_bytes();
    }
    std::uint64_t query_bytes() const {
        return std::uint64_t{shape_.q_heads} * kWindow * row_bytes();
    }
    std::uint64_t kept_bytes() const {
        return std::uint64_t{shape_.kv_heads} * kept_rows() * row_bytes();
    }

    Result<void> make_inputs() {
        auto const keys = random_elements(shape_.dtype, key_bytes() / bytes_of(shape_.dtype));
        keys_.emplace(DKV_TRY(Turns::create(keys, options_.cold_bytes)));
        // As many queries as accumulate wants; score takes the first of them.
        std::uint64_t const query_tokens =
            shape_.tokens <= kAccumulateTokensMax ? shape_.tokens : kWindow;
        auto const queries = random_elements(
            shape_.dtype, std::uint64_t{shape_.q_heads} * query_tokens * shape_.head_dim);
        queries_.emplace(DKV_TRY(Turns::create(queries, 0)));
        std::size_t const columns = std::size_t{shape_.kv_heads} * (shape_.tokens - kWindow);
        auto const scores = random_scores(columns);
        scores_.emplace(
            DKV_TRY(Turns::create(std::as_bytes(std::span(scores)), options_.cold_bytes)));
        for (std::size_t i = 0; i < scores_->count(); ++i)
            layers_.push_back(as<float const>(scores_->at(i)));
        std::vector<float> const lse(std::size_t{shape_.q_heads} * kWindow, 9.0F);
        lse_.emplace(DKV_TRY(Turns::create(std::as_bytes(std::span(lse)), 0)));

        std::vector<std::int32_t> all(shape_.tokens);
        std::iota(all.begin(), all.end(), 0);
        std::vector<std::int32_t> ids(std::size_t{shape_.kv_heads} * kept_rows());
        std::mt19937 random(3);
        for (std::uint32_t head = 0; head < shape_.kv_heads; ++head) {
            auto const first = ids.begin() + std::ptrdiff_t{head} * kept_rows();
            std::sample(all.begin(), all.end(), first, kept_rows(), random);
            offsets_.push_back(head * kept_rows() * row_bytes());
        }
        ids_.emplace(DKV_TRY(Turns::create(std::as_bytes(std::span(ids)), 0)));
        lengths_.assign(shape_.kv_heads, kept_rows());
        out_ = DKV_TRY(cuda::allocate_device_memory(std::max(kept_bytes(), columns * 4)));
        return {};
    }

    RowsView rows(std::span<std::byte> bytes, std::uint32_t heads, std::uint32_t tokens) const {
        RowsView view = dense_rows(bytes.data(), shape_.dtype, heads, tokens, shape_.head_dim);
        view.place = Place::Device;
        return view;
    }
    RowsView keys() { return rows(keys_->next(), shape_.kv_heads, shape_.tokens); }
    std::span<float> columns() {
        return as<float>(out_->bytes())
            .first(std::size_t{shape_.kv_heads} * (shape_.tokens - kWindow));
    }

    Result<void> score(bool with_lse) {
        ScoreArgs args;
        args.queries = rows(queries_->next(), shape_.q_heads, kWindow);
        args.keys = keys();
        args.scores = columns();
        if (with_lse) args.lse = as<float const>(lse_->next());
        return cuda::score(args, queue_);
    }
    Result<void> accumulate() {
        AccumulateArgs args;
        args.queries = rows(queries_->next(), shape_.q_heads, shape_.tokens);
        args.keys = keys();
        args.scores = columns();
        args.window = kWindow;
        return cuda::accumulate(args, queue_);
    }
    Result<void> key_score(KeyMeasure what) {
        KeyScoreArgs args;
        args.keys = keys();
        args.scores = columns();
        args.window = kWindow;
        args.measure = what;
        return cuda::key_score(args, queue_);
    }
    Result<void> pool() {
        PoolArgs args;
        args.scores = as<float const>(scores_->next());
        args.out = columns();
        args.heads = shape_.kv_heads;
        args.tokens = shape_.tokens - kWindow;
        args.kernel = kPoolKernel;
        return cuda::pool(args, queue_);
    }
    Result<void> select() {
        SelectArgs args;
        args.scores = as<float const>(scores_->next());
        args.keep = lengths_;
        args.ids =
            as<std::int32_t>(out_->bytes()).first(std::size_t{shape_.kv_heads} * kept_rows());
        args.tokens = shape_.tokens - kWindow;
        return cuda::select(args, queue_);
    }
    Result<void> sum() {
        sums_.resize(shape_.kv_heads);
        SumArgs args;
        args.scores = as<float const>(scores_->next());
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
        args.total = std::uint64_t{layers_.size()} * shape_.kv_heads * kept_rows();
        return cuda::tally(args, queue_);
    }
    Result<void> gather() {
        GatherArgs args;
        args.source = keys();
        args.ids = as<std::int32_t const>(ids_->next());
        args.lengths = lengths_;
        args.out = out_->bytes().first(kept_bytes());
        args.out_offsets = offsets_;
        return cuda::gather(args, queue_);
    }

    Result<void> add(char const* op, double bytes, std::function<Result<void>()> const& body) {
        if (!std::string_view(op).starts_with(options_.filter)) return {};
        DKV_TRY(body());  // Loads the code and grows what has to grow.
        DKV_TRY(queue_.synchronize());
        auto stopwatch = DKV_TRY(Stopwatch::create());
        double const seconds = DKV_TRY(stopwatch.time(queue_, [&]() -> Result<void> {
            for (unsigned run = 0; run < options_.runs; ++run)
                DKV_TRY(body());
            return {};
        }));
        measured_.push_back({op, shape_, seconds / options_.runs, bytes});
        return {};
    }

    Shape const& shape_;
    Options const& options_;
    cuda::Queue& queue_;
    std::optional<Turns> keys_, queries_, scores_, lse_, ids_;
    std::vector<std::span<float const>> layers_;
    std::vector<std::uint32_t> lengths_;
    std::vector<std::uint64_t> offsets_;
    std::vector<double> sums_;
    std::vector<std::uint64_t> counts_;
    Memory out_;
    std::vector<Measured> measured_;
};

Result<std::unique_ptr<cuda::Queue>> queue_on_first_device() {
    auto const devices = DKV_TRY(cuda::devices());
    DKV_TRY(cuda::use_device(devices.front().uuid));
    return cuda::Queue::create(CudaOptions{}.pool_bytes);
}

}  // namespace

Result<double> copy_rate(std::uint64_t bytes, unsigned runs) {
    auto const queue = DKV_TRY(queue_on_first_device());
    auto const source = DKV_TRY(cuda::allocate_device_memory(bytes));
    auto const target = DKV_TRY(cuda::allocate_device_memory(bytes));
    auto stopwatch = DKV_TRY(Stopwatch::create());
    double best = 0;
    for (unsigned run = 0; run <= runs; ++run) {
        double const seconds = DKV_TRY(stopwatch.time(*queue, [&]() -> Result<void> {
            DKV_CUDA_TRY(cudaMemcpyAsync(target->bytes().data(), source->bytes().data(), bytes,
                                         cudaMemcpyDeviceToDevice, queue->stream()));
            return {};
        }));
        if (run > 0 && seconds > 0)
            best = std::max(best, 2.0 * static_cast<double>(bytes) / seconds);
    }
    return best;
}

Result<std::vector<Measured>> measure(Options const& options) {
    auto const queue = DKV_TRY(queue_on_first_device());
    std::vector<Measured> all;
    for (Shape const& shape : options.shapes) {
        auto some = DKV_TRY(Bench(shape, options, *queue).run());
        std::move(some.begin(), some.end(), std::back_inserter(all));
    }
    return all;
}

}  // namespace dkv::gpu
