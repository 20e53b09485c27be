// Blocks of queries against stretches of keys, in two passes: what each query's softmax sums to,
// then what each token's share of all of them is. A stretch of keys stays in a core's cache while
// all blocks of queries pass over it.
#include <algorithm>
#include <hwy/aligned_allocator.h>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/score_tiles.h"

namespace dkv::cpu {
namespace {

// Blocks and stretches depend on the shape alone and are added in order: the same bits on any
// number of threads.
constexpr std::uint32_t kStretchKeys = 20 * kTileKeys;
constexpr std::size_t kBlockRows = 192;

class Accumulate {
public:
    Accumulate(AccumulateArgs const& args, Workers& workers)
        : args_(args),
          workers_(workers),
          group_(args.queries.heads / args.keys.heads),
          block_(std::min(std::max(kBlockRows / group_, std::size_t{1}), tokens())),
          blocks_((tokens() + block_ - 1) / block_),
          whole_(group_, block_, args.keys, simd()),
          last_(group_, tokens() - (blocks_ - 1) * block_, args.keys, simd()),
          columns_(args.keys.tokens - args.window),
          form_{query_scale(args.scale, args.keys.head_dim, args.softcap), args.softcap} {}

    Result<void> run() {
        DKV_TRY(allocate());
        std::size_t const heads = args_.keys.heads;
        // The longest first, so that workers end together.
        workers_.for_each(heads * blocks_, [&](std::size_t item, std::size_t worker) {
            statistics(item % heads, blocks_ - 1 - item / heads, worker);
        });
        std::size_t const stretches = (columns_ + kStretchKeys - 1) / kStretchKeys;
        workers_.for_each(heads * stretches, [&](std::size_t item, std::size_t worker) {
            sums(item % heads, item / heads, worker);
        });
        return {};
    }

private:
    std::size_t tokens() const noexcept { return args_.keys.tokens; }
    std::size_t head_dim() const noexcept { return args_.keys.head_dim; }
    RowPlan const& plan(std::size_t block) const noexcept {
        return block + 1 == blocks_ ? last_ : whole_;
    }
    std::uint32_t first_token(std::size_t block) const noexcept {
        return static_cast<std::uint32_t>(block * block_);
    }
    std::uint32_t end_token(std::size_t block) const noexcept {
        return static_cast<std::uint32_t>(std::min((block + 1) * block_, tokens()));
    }

    float* largest(std::size_t head, std::size_t block) noexcept {
        return memory_.get() + 2 * (head * blocks_ + block) * whole_.rows_padded;
    }
    float* weight(std::size_t head, std::size_t block) noexcept {
        return largest(head, block) + plan(block).rows_padded;
    }
    /// A worker's packed queries, tile and sums.
    struct Scratch {
        float* queries;
        TileMemory tile;
        float* sums;
    };
    Scratch scratch(std::size_t worker) noexcept {
        float* const begin = workers_memory_ + worker * worker_floats();
        float* const tile = begin + queries_floats();
        return {begin, tile_memory(tile, head_dim()), tile + tile_floats(head_dim())};
    }
    std::size_t queries_floats() const noexcept { return round_up(whole_.query_floats(), kLine); }
    std::size_t worker_floats() const noexcept {
        return round_up(queries_floats() + tile_floats(head_dim()) + group_ * kStretchKeys, kLine);
    }

    Result<void> allocate() {
        std::size_t const statistics =
            round_up(2 * blocks_ * args_.keys.heads * whole_.rows_padded, kLine);
        std::size_t const floats = statistics + workers_.count() * worker_floats();
        memory_ = hwy::AllocateAligned<float>(floats);
        if (!memory_)
            return Error{ErrorCode::LimitExceeded, "not enough memory for " +
                                                       std::to_string(floats * sizeof(float)) +
                                                       " bytes of accumulate's statistics"};
        workers_memory_ = memory_.get() + statistics;
        return {};
    }

    void statistics(std::size_t head, std::size_t block, std::size_t worker) {
        Scratch const memory = scratch(worker);
        RowPlan const& rows = plan(block);
        pack_queries(rows, args_.queries, head, first_token(block), memory.queries);
        float* const top = largest(head, block);
        float* const sum = weight(head, block);  // What becomes the weight.
        range_statistics(rows, memory.queries,
                         {&args_.keys, static_cast<std::uint32_t>(head), 0, end_token(block)},
                         first_token(block), form_, memory.tile, top, sum, {});
        join_statistics(rows, top, 1, top, sum);
        if (!args_.sink_logits.empty())
            join_sinks(rows, args_.sink_logits.subspan(head * group_, group_), top, sum);
    }

    void sums(std::size_t head, std::size_t stretch, std::size_t worker) {
        Scratch const memory = scratch(worker);
        auto const begin = static_cast<std::uint32_t>(stretch * kStretchKeys);
        std::uint32_t const end = begin + std::min(kStretchKeys, columns_ - begin);
        std::fill_n(memory.sums, group_ * kStretchKeys, 0.0f);
        for (std::size_t block = begin / block_; block < blocks_; ++block) {
            RowPlan const& rows = plan(block);
            pack_queries(rows, args_.queries, head, first_token(block), memory.queries);
            range_sums(rows, memory.queries,
                       {&args_.keys, static_cast<std::uint32_t>(head), begin,
                        std::min(end, end_token(block))},
                       first_token(block), form_, largest(head, block), weight(head, block),
                       memory.tile, memory.sums, kStretchKeys);
        }
        if (args_.per_query)
            for (std::size_t g = 0; g < group_; ++g)
                for (std::uint32_t token = begin; token < end; ++token)
                    memory.sums[g * kStretchKeys + token - begin] /=
                        static_cast<float>(args_.keys.tokens - token);
        std::size_t const row = args_.reduce == GroupReduce::None ? head * group_ : head;
        reduce_group(args_.reduce, group_, memory.sums, kStretchKeys, end - begin,
                     args_.scores.data() + row * columns_ + begin, columns_);
    }

    static constexpr std::size_t kLine = 16;  // f32 in 64 bytes.

    AccumulateArgs const& args_;
    Workers& workers_;
    std::size_t const group_;
    std::size_t const block_;  // Query tokens that are met together.
    std::size_t const blocks_;
    RowPlan const whole_;
    RowPlan const last_;  // Of the last block, which may be shorter.
    std::uint32_t const columns_;
    LogitForm const form_;

    hwy::AlignedFreeUniquePtr<float[]> memory_;  // [kv_heads, blocks, 2, rows_padded], workers'.
    float* workers_memory_ = nullptr;
};

}  // namespace

Result<void> accumulate(AccumulateArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    if (args.queries.place != Place::Host || args.keys.place != Place::Host)
        return Error{ErrorCode::InvalidArgument, "queries or keys are in device memory"};
    if (args.scores.empty()) return {};
    return Accumulate(args, workers).run();
}

}  // namespace dkv::cpu
