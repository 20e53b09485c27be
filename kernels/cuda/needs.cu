// What ops will ask their queue for, before there is anything to run them on. Upper bounds, but for
// score's and accumulate's, which are worked out as the ops do it; a test holds every op to them.
#include <algorithm>
#include <initializer_list>

#include "kernels/backend.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/score_pass.h"
#include "kernels/cuda/select_radix.h"

namespace dkv::cuda {
namespace {

constexpr std::uint32_t kShortKernelMax = 31;                         // Pools in shared memory.
constexpr std::uint64_t kPoolScratchMax = std::uint64_t{256} << 20U;  // Unless one head wants more.
constexpr std::uint64_t kChunksMax = 256;  // Of a row, in select and key_score.

std::uint64_t sum_of(std::initializer_list<std::uint64_t> parts) {
    std::uint64_t sum = 0;
    for (std::uint64_t const bytes : parts)
        sum += Queue::scratch_rounded(bytes);
    return sum;
}

RowsView rows_of(PromptSizes const& sizes, std::uint32_t heads, std::uint32_t tokens) {
    return dense_rows(nullptr, sizes.dtype, heads, tokens, sizes.head_dim);
}

Result<std::uint64_t> by_attention(PromptSizes const& sizes) {
    auto const keys = rows_of(sizes, sizes.kv_heads, sizes.tokens);
    auto const queries = rows_of(sizes, sizes.q_heads, sizes.window);
    auto const pass = DKV_TRY(Pass::plan(queries, keys, sizes.tokens - sizes.window, 0, 0));
    std::uint64_t const window = pass.needs().scratch_bytes();
    if (!sizes.accumulates) return window;
    AccumulateArgs const args{.queries = rows_of(sizes, sizes.q_heads, sizes.tokens),
                              .keys = keys,
                              .scores = {},
                              .window = sizes.window,
                              .reduce = sizes.reduce};
    return std::max(window, DKV_TRY(scratch_bytes(args)));
}

/// Means, what chunks add up to, and of rows that are not whole 16-byte words the norms.
std::uint64_t by_keys(PromptSizes const& sizes) {
    std::uint64_t const heads = sizes.kv_heads;
    std::uint64_t const mean = heads * sizes.head_dim * sizeof(float);
    return sum_of({mean, mean * kChunksMax, heads * sizes.tokens * sizeof(float)});
}

/// Of a long kernel: two levels and the windows, in f64, of some heads at a time.
std::uint64_t pool_bytes(PromptSizes const& sizes) {
    std::uint64_t const positions = sizes.tokens + std::uint64_t{sizes.kernel};
    std::uint64_t const head = (2 * positions + sizes.tokens) * sizeof(double);
    std::uint64_t const all = std::min(sizes.kv_heads * head, std::max(kPoolScratchMax, head));
    return all + sum_of({0, 0, 0});
}

std::uint64_t select_bytes(PromptSizes const& sizes) {
    std::uint64_t const heads = sizes.kv_heads;
    return sum_of({heads * 16, kRadixPasses * heads * kRadixBins * sizeof(unsigned),
                   kRadixPasses * heads * sizeof(Threshold), heads * kChunksMax * 8, sizes.ids * 8,
                   sizes.ids * 8});
}

std::uint64_t tally_bytes(PromptSizes const& sizes) {
    std::uint64_t const rows = std::uint64_t{sizes.layers} * sizes.kv_heads;
    std::uint64_t const chunks = sizes.tokens / 8192 + 1;  // sum's.
    std::uint64_t const sum =
        sum_of({sizes.kv_heads * chunks * sizeof(double), sizes.kv_heads * sizeof(double)});
    return std::max(sum, sum_of({std::uint64_t{sizes.layers} * 16,
                                 kRadixPasses * kRadixBins * sizeof(std::uint64_t),
                                 kRadixPasses * sizeof(Threshold), rows * 16, rows * 8}));
}

}  // namespace

Result<std::uint64_t> scratch_bytes(PromptSizes const& sizes) {
    std::uint64_t most = sum_of({std::uint64_t{sizes.kv_heads} * 24});  // gather's heads.
    // Longer keys are refused by the ops, if they are ever called: who ranks otherwise needs none.
    bool const attends = sizes.window != 0 && sizes.window <= sizes.tokens;
    if (attends && sizes.head_dim <= kHeadDimMax)
        most = std::max(most, DKV_TRY(by_attention(sizes)));
    if (sizes.scores_keys) most = std::max(most, by_keys(sizes));
    if (sizes.kernel > kShortKernelMax) most = std::max(most, pool_bytes(sizes));
    if (sizes.tallies) most = std::max(most, tally_bytes(sizes));
    if (sizes.ids != 0) most = std::max(most, select_bytes(sizes));
    return most;
}

}  // namespace dkv::cuda
