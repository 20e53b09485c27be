// Two passes over the keys: what each query's softmax sums to, then what each token's share is.
// With the engine's log-sum-exps the first is not needed.
#include <algorithm>
#include <cmath>
#include <hwy/aligned_allocator.h>
#include <limits>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/score_tiles.h"

namespace dkv::cpu {
namespace {

// Ranges depend on the shape alone and are joined in order: the same bits on any number of threads.
constexpr std::uint32_t kRangeKeys = 5 * kTileKeys;
constexpr float kMost = std::numeric_limits<float>::max();

class Score {
public:
    Score(ScoreArgs const& args, Workers& workers)
        : args_(args),
          workers_(workers),
          plan_(args.queries.heads / args.keys.heads, args.queries.tokens, simd()),
          prefix_(args.keys.tokens - args.queries.tokens) {}

    Result<void> run() {
        DKV_TRY(allocate());
        workers_.for_each(kv_heads(), [&](std::size_t head, std::size_t) { pack(head); });
        if (args_.lse.empty()) {
            std::size_t const count = ranges(args_.keys.tokens);
            workers_.for_each(kv_heads() * count, [&](std::size_t item, std::size_t worker) {
                statistics(item / count, item % count, worker);
            });
            workers_.for_each(kv_heads(), [&](std::size_t head, std::size_t) {
                join_statistics(plan_, statistics_at(head, 0), count, largest(head), weight(head));
                average(head);
            });
        } else {
            for (std::size_t head = 0; head < kv_heads(); ++head)
                take_lse(head);
        }
        std::size_t const count = ranges(prefix_);
        workers_.for_each(kv_heads() * count, [&](std::size_t item, std::size_t worker) {
            sums(item / count, item % count, worker);
        });
        return {};
    }

private:
    std::size_t kv_heads() const noexcept { return args_.keys.heads; }
    std::size_t head_dim() const noexcept { return args_.keys.head_dim; }
    static std::size_t ranges(std::uint32_t tokens) noexcept {
        return (std::size_t{tokens} + kRangeKeys - 1) / kRangeKeys;
    }

    float* queries(std::size_t head) noexcept {
        return memory_.get() + head * plan_.rows_padded * head_dim();
    }
    float* largest(std::size_t head) noexcept { return largest_ + 2 * head * plan_.rows_padded; }
    float* weight(std::size_t head) noexcept { return largest(head) + plan_.rows_padded; }
    float* statistics_at(std::size_t head, std::size_t range) noexcept {
        return statistics_ + 2 * (head * ranges(args_.keys.tokens) + range) * plan_.rows_padded;
    }
    float* worker_memory(std::size_t worker) noexcept {
        return workers_memory_ + worker * worker_floats();
    }
    std::size_t worker_floats() const noexcept {
        return round_up(tile_floats(head_dim()) + plan_.group * kRangeKeys, kLine);
    }
    KeyRange range(std::size_t head, std::size_t index, std::uint32_t tokens) const noexcept {
        auto const begin = static_cast<std::uint32_t>(index * kRangeKeys);
        return {&args_.keys, static_cast<std::uint32_t>(head), begin,
                begin + std::min(kRangeKeys, tokens - begin)};
    }

    Result<void> allocate() {
        std::size_t const rows = kv_heads() * plan_.rows_padded;
        std::size_t const queries = round_up(rows * head_dim(), kLine);
        std::size_t const joined = round_up(2 * rows, kLine);
        std::size_t const parts =
            args_.lse.empty() ? round_up(2 * rows * ranges(args_.keys.tokens), kLine) : 0;
        std::size_t const floats = queries + joined + parts + workers_.count() * worker_floats();
        memory_ = hwy::AllocateAligned<float>(floats);
        if (!memory_)
            return Error{ErrorCode::LimitExceeded, "not enough memory for " +
                                                       std::to_string(floats * sizeof(float)) +
                                                       " bytes of score's statistics"};
        largest_ = memory_.get() + queries;
        statistics_ = largest_ + joined;
        workers_memory_ = statistics_ + parts;
        return {};
    }

    void pack(std::size_t head) {
        pack_queries(plan_, args_.queries, head, 0,
                     query_scale(args_.scale, head_dim(), args_.softcap), queries(head));
    }

    void statistics(std::size_t head, std::size_t index, std::size_t worker) {
        float* const out = statistics_at(head, index);
        range_statistics(plan_, queries(head), range(head, index, args_.keys.tokens), prefix_,
                         args_.softcap, tile_memory(worker_memory(worker), head_dim()), out,
                         out + plan_.rows_padded);
    }

    void take_lse(std::size_t head) {
        std::transform(args_.lse.begin() + static_cast<std::ptrdiff_t>(head * plan_.rows),
                       args_.lse.begin() + static_cast<std::ptrdiff_t>((head + 1) * plan_.rows),
                       largest(head), [](float lse) {
                           lse *= kLog2E;
                           return std::isnan(lse) ? kMost : std::clamp(lse, -kMost, kMost);
                       });
        std::fill(largest(head) + plan_.rows, largest(head) + plan_.rows_padded, 0.0f);
        std::fill_n(weight(head), plan_.rows_padded, 1.0f);
        average(head);
    }

    /// Sums over the window become means.
    void average(std::size_t head) {
        std::for_each_n(weight(head), plan_.rows_padded,
                        [&](float& w) { w /= static_cast<float>(plan_.window); });
    }

    void sums(std::size_t head, std::size_t index, std::size_t worker) {
        KeyRange const keys = range(head, index, prefix_);
        float* const tile = worker_memory(worker);
        float* const sums = tile + tile_floats(head_dim());
        std::fill_n(sums, plan_.group * kRangeKeys, 0.0f);
        range_sums(plan_, queries(head), keys, prefix_, args_.softcap, largest(head), weight(head),
                   tile_memory(tile, head_dim()), sums, kRangeKeys);
        reduce(head, keys, sums);
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

    static constexpr std::size_t kLine = 16;  // f32 in 64 bytes.

    ScoreArgs const& args_;
    Workers& workers_;
    RowPlan const plan_;
    std::uint32_t const prefix_;  // Tokens before the window.

    hwy::AlignedFreeUniquePtr<float[]> memory_;  // Packed queries, then the parts below.
    float* largest_ = nullptr;                   // [kv_heads, 2, rows_padded], with the weights
    float* statistics_ = nullptr;                // [kv_heads, ranges, 2, rows_padded]
    float* workers_memory_ = nullptr;            // [workers, worker_floats]
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
