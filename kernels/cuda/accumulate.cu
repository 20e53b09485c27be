// Blocks of queries, each against the keys up to its end as `score` does it with a window; what
// they give is added up in the blocks' order. Scratch is bounded by a block.
#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/score_pass.h"

namespace dkv::cuda {
namespace {

constexpr std::uint32_t kBlockRows = 4096;  // Of a KV head: many times what a device has warps.
constexpr unsigned kThreads = 256;

// A thread finishes one number of `scores`.
//
//   sums    [q_heads, columns]   read, when not null: the largest of a group counts
//   scores  [rows, columns]      written; read, when sums are not asked for
DKV_KERNEL void finish_kernel(float const* __restrict__ sums,
                              float* __restrict__ scores,
                              std::uint64_t count,
                              std::uint32_t columns,
                              std::uint32_t group,
                              std::uint32_t tokens,
                              bool per_query,
                              Fault const* fault) {
    if (fault->kind != 0) return;  // The sums were not begun.
    std::uint64_t const index = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (index >= count) return;
    std::uint64_t const row = index / columns;
    auto const token = static_cast<std::uint32_t>(index % columns);
    float value = 0;
    if (sums == nullptr) {
        value = scores[index];
    } else {
        for (std::uint32_t head = 0; head < group; ++head)
            value = fmaxf(value, sums[(row * group + head) * columns + token]);
    }
    scores[index] = per_query ? value / static_cast<float>(tokens - token) : value;
}

std::uint32_t block_tokens(std::uint32_t tokens, std::uint32_t group) {
    return std::min(tokens, std::max(8U, kBlockRows / group / 8 * 8));
}

/// The queries from token `first` on.
Result<Pass> plan_block(AccumulateArgs const& args, std::uint32_t first, std::uint32_t tokens) {
    RowsView queries = args.queries;
    queries.data = queries.row(0, first);
    queries.tokens = std::min(tokens, args.queries.tokens - first);
    return Pass::plan(queries, args.keys, first, args.scale, args.softcap);
}

/// What the largest of the blocks wants.
Result<PassNeeds> needs_of(AccumulateArgs const& args, std::uint32_t block) {
    PassNeeds needs{};
    std::uint32_t const tokens = args.keys.tokens;
    for (std::uint32_t first = 0; first < tokens; first += std::min(block, tokens - first)) {
        auto const pass = DKV_TRY(plan_block(args, first, block));
        PassNeeds const own = pass.needs();
        needs = {std::max(needs.packed_bytes, own.packed_bytes), std::max(needs.rows, own.rows),
                 std::max(needs.partials, own.partials), own.sinks};
    }
    return needs;
}

/// Sums of query heads, where the largest of a group counts: it is known behind the last block.
std::size_t sums_count(AccumulateArgs const& args) {
    if (args.reduce != GroupReduce::Max) return 0;
    return std::size_t{args.queries.heads} * (args.keys.tokens - args.window);
}

}  // namespace

Result<std::uint64_t> scratch_bytes(AccumulateArgs const& args) {
    std::uint32_t const group = args.queries.heads / args.keys.heads;
    auto const needs = DKV_TRY(needs_of(args, block_tokens(args.keys.tokens, group)));
    return needs.scratch_bytes() + Queue::scratch_rounded(sums_count(args) * sizeof(float));
}

Result<void> accumulate(AccumulateArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.queries.place != Place::Device || args.keys.place != Place::Device)
        return Error{ErrorCode::InvalidArgument, "queries or keys are in host memory"};
    if (args.scores.empty()) return {};
    queue.begin();
    DKV_TRY(check_blocks_later(args.keys, queue));
    std::uint32_t const tokens = args.keys.tokens;
    std::uint32_t const columns = tokens - args.window;
    std::uint32_t const group = args.queries.heads / args.keys.heads;
    std::uint32_t const block = block_tokens(tokens, group);

    auto const needs = DKV_TRY(needs_of(args, block));
    auto memory = DKV_TRY(plan_block(args, 0, block));
    DKV_TRY(memory.take_memory(queue, needs, args.sink_logits));

    bool const largest = args.reduce == GroupReduce::Max;
    float* const sums =
        largest ? DKV_TRY(queue.scratch<float>(sums_count(args))) : args.scores.data();
    for (std::uint32_t first = 0; first < tokens; first += std::min(block, tokens - first)) {
        auto pass = DKV_TRY(plan_block(args, first, block));
        pass.share_memory(memory);
        DKV_TRY(pass.pack_queries(queue));
        DKV_TRY(pass.statistics(queue, 1));
        DKV_TRY(pass.join_sinks(queue, 1));
        std::uint32_t const end = first + std::min(block, tokens - first);
        DKV_TRY(pass.sums(queue, {.scores = sums,
                                  .mass = nullptr,
                                  .peaks = nullptr,
                                  .stride = columns,
                                  .columns = std::min(columns, end),
                                  .reduce = largest ? GroupReduce::None : args.reduce,
                                  .begun = std::min(columns, first),
                                  .share = 1}));
    }
    if (!largest && !args.per_query) return {};
    unsigned const blocks = DKV_TRY(grid_of((args.scores.size() + kThreads - 1) / kThreads));
    return launch(finish_kernel, blocks, kThreads, 0, queue.stream(),
                  static_cast<float const*>(largest ? sums : nullptr), args.scores.data(),
                  std::uint64_t{args.scores.size()}, columns, group, tokens, args.per_query,
                  static_cast<Fault const*>(queue.fault()));
}

}  // namespace dkv::cuda
