// One pass over the keys for what each query's softmax sums to; it keeps 2^logit for the second,
// which only weighs and adds. Past a limit on what is kept, the second computes them from the keys.
#include <algorithm>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/score_tiles.h"

namespace dkv::cpu {
namespace {

// Ranges, and which of them are kept, depend on the shape alone, and are joined in order: the same
// bits on any number of threads.
constexpr std::uint32_t kRangeTiles = 5;
constexpr std::uint32_t kRangeKeys = kRangeTiles * kTileKeys;
constexpr std::size_t kKeptFloatsMax = 8 << 20;  // 32 MiB: 64k tokens of 128 rows.
constexpr std::size_t kItemsPerWorker = 8;       // So that workers end together.
constexpr std::size_t kLine = 16;                // f32 in 64 bytes.

std::size_t ranges(std::uint32_t tokens) noexcept {
    return (std::size_t{tokens} + kRangeKeys - 1) / kRangeKeys;
}

class Score {
public:
    Score(ScoreArgs const& args, Workers& workers)
        : args_(args),
          workers_(workers),
          plan_(args.queries.heads / args.keys.heads, args.queries.tokens, args.keys, simd()),
          form_{query_scale(args.scale, args.keys.head_dim, args.softcap), args.softcap},
          prefix_(args.keys.tokens - args.queries.tokens),
          ranges_(ranges(args.keys.tokens)),
          kept_(std::min(ranges_, kKeptFloatsMax / range_floats())),
          batch_(batch()) {}

    Result<void> run() {
        DKV_TRY(allocate());
        for (first_ = 0; first_ < args_.keys.heads; first_ += batch_)
            run_batch(std::min(batch_, args_.keys.heads - first_));
        return {};
    }

private:
    std::size_t head_dim() const noexcept { return args_.keys.head_dim; }
    std::size_t range_floats() const noexcept { return kRangeKeys * plan_.rows_padded; }

    /// How many KV heads are met together: enough for all workers, no more than can be kept.
    std::size_t batch() const noexcept {
        std::size_t const heads = args_.keys.heads;
        std::size_t const wanted = kItemsPerWorker * workers_.count() / ranges_ + 1;
        std::size_t const most =
            kKeptFloatsMax / (std::max<std::size_t>(kept_, 1) * range_floats());
        return std::min({heads, wanted, std::max<std::size_t>(most, 1)});
    }

    /// One KV head's memory; `head` counts from the batch's first one.
    struct HeadMemory {
        float* queries;     ///< As plan_ packs them.
        float* largest;     ///< [rows_padded]
        float* weight;      ///< [rows_padded]
        float* statistics;  ///< [ranges, 2, rows_padded]
        float* tops;        ///< [kept ranges, tiles, rows_padded]
        float* powers;      ///< [kept ranges, kRangeKeys, rows_padded]
    };
    HeadMemory of(std::size_t head) const noexcept {
        std::size_t const rows = plan_.rows_padded;
        float* const queries = memory_ + head * head_floats();
        float* const largest = queries + round_up(plan_.query_floats(), kLine);
        float* const statistics = largest + 2 * rows;
        float* const tops = statistics + ranges_ * 2 * rows;
        return {queries,    largest, largest + rows,
                statistics, tops,    tops + kept_ * kRangeTiles * rows};
    }
    std::size_t head_floats() const noexcept {
        std::size_t const rows = plan_.rows_padded;
        return round_up(round_up(plan_.query_floats(), kLine) +
                            rows * (2 + 2 * ranges_ + kept_ * (kRangeTiles + kRangeKeys)),
                        kLine);
    }
    Kept kept(std::size_t head, std::size_t index) const noexcept {
        if (index >= kept_) return {nullptr, nullptr};
        HeadMemory const memory = of(head);
        return {memory.powers + index * range_floats(),
                memory.tops + index * kRangeTiles * plan_.rows_padded};
    }

    float* worker_memory(std::size_t worker) const noexcept {
        return workers_memory_ + worker * worker_floats();
    }
    std::size_t worker_floats() const noexcept {
        return round_up(tile_floats(head_dim()) + (plan_.group + 1) * kRangeKeys, kLine);
    }
    KeyRange range(std::size_t head, std::size_t index, std::uint32_t tokens) const noexcept {
        auto const begin = static_cast<std::uint32_t>(index * kRangeKeys);
        return {&args_.keys, static_cast<std::uint32_t>(first_ + head), begin,
                begin + std::min(kRangeKeys, tokens - begin)};
    }

    Result<void> allocate() {
        std::size_t const heads = batch_ * head_floats();
        std::size_t const floats = heads + workers_.count() * worker_floats();
        memory_ = workers_.memory(floats);
        if (memory_ == nullptr)
            return Error{ErrorCode::LimitExceeded, "not enough memory for " +
                                                       std::to_string(floats * sizeof(float)) +
                                                       " bytes of score's statistics"};
        workers_memory_ = memory_ + heads;
        return {};
    }

    void run_batch(std::size_t heads) {
        workers_.for_each(heads, [&](std::size_t head, std::size_t) {
            pack_queries(plan_, args_.queries, first_ + head, 0, of(head).queries);
        });
        workers_.for_each(heads * ranges_, [&](std::size_t item, std::size_t worker) {
            statistics(item / ranges_, item % ranges_, worker);
        });
        workers_.for_each(heads, [&](std::size_t head, std::size_t) {
            HeadMemory const memory = of(head);
            join_statistics(plan_, memory.statistics, ranges_, memory.largest, memory.weight);
            finish_weights(head);
        });
        std::size_t const count = ranges(prefix_);
        workers_.for_each(heads * count, [&](std::size_t item, std::size_t worker) {
            // Backwards: what was kept last is still near.
            std::size_t const left = heads * count - 1 - item;
            sums(left / count, left % count, worker);
        });
    }

    void statistics(std::size_t head, std::size_t index, std::size_t worker) {
        HeadMemory const memory = of(head);
        float* const out = memory.statistics + index * 2 * plan_.rows_padded;
        range_statistics(plan_, memory.queries, range(head, index, args_.keys.tokens), prefix_,
                         form_, tile_memory(worker_memory(worker), head_dim()), out,
                         out + plan_.rows_padded, kept(head, index));
    }

    /// The sinks take their share, and sums over the window become means.
    void finish_weights(std::size_t head) const {
        HeadMemory const memory = of(head);
        if (!args_.sink_logits.empty())
            join_sinks(plan_, args_.sink_logits.subspan((first_ + head) * plan_.group, plan_.group),
                       memory.largest, memory.weight);
        std::for_each_n(memory.weight, plan_.rows_padded,
                        [&](float& w) { w /= static_cast<float>(plan_.window); });
    }

    void sums(std::size_t head, std::size_t index, std::size_t worker) {
        KeyRange const keys = range(head, index, prefix_);
        HeadMemory const memory = of(head);
        float* const tile = worker_memory(worker);
        float* const sums = tile + tile_floats(head_dim());
        float* const peaks = args_.peaks.empty() ? nullptr : sums + plan_.group * kRangeKeys;
        std::fill_n(sums, (plan_.group + 1) * kRangeKeys, 0.0f);
        if (index < kept_)
            kept_sums(plan_, kept(head, index), keys.end - keys.begin, memory.largest,
                      memory.weight, sums, kRangeKeys, peaks);
        else
            range_sums(plan_, memory.queries, keys, prefix_, form_, memory.largest, memory.weight,
                       tile_memory(tile, head_dim()), sums, kRangeKeys, peaks);
        reduce(first_ + head, keys, sums);
        // Weights are shares of a mean.
        for (std::size_t i = 0; peaks != nullptr && i < keys.end - keys.begin; ++i)
            args_.peaks[(first_ + head) * prefix_ + keys.begin + i] =
                peaks[i] * static_cast<float>(plan_.window);
    }

    /// From one number per query head to what the caller asked for.
    void reduce(std::size_t head, KeyRange const& keys, float const* sums) {
        std::size_t const count = keys.end - keys.begin;
        reduce_group(args_.reduce, plan_.group, sums, kRangeKeys, count,
                     args_.scores.data() + keys.begin + first_row(head) * prefix_, prefix_);
        if (!args_.mass.empty())
            reduce_group(GroupReduce::Mean, plan_.group, sums, kRangeKeys, count,
                         args_.mass.data() + keys.begin + head * prefix_, prefix_);
    }
    std::size_t first_row(std::size_t head) const noexcept {
        return args_.reduce == GroupReduce::None ? head * plan_.group : head;
    }

    ScoreArgs const& args_;
    Workers& workers_;
    RowPlan const plan_;
    LogitForm const form_;
    std::uint32_t const prefix_;  // Tokens before the window.
    std::size_t const ranges_;    // Of the statistics.
    std::size_t const kept_;      // How many of them, from the first on, are kept for the sums.
    std::size_t const batch_;     // KV heads that are met together.

    std::size_t first_ = 0;            // The batch's first KV head.
    float* memory_ = nullptr;          // [batch, head_floats]
    float* workers_memory_ = nullptr;  // [workers, worker_floats]
};

}  // namespace

Result<void> score(ScoreArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    if (args.queries.place != Place::Host || args.keys.place != Place::Host)
        return Error{ErrorCode::InvalidArgument, "queries or keys are in device memory"};
    if (args.scores.empty()) return {};
    return Score(args, workers).run();
}

}  // namespace dkv::cpu
