#include "sidecar/pipeline/spec.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

namespace dkv {
namespace {

constexpr std::uint64_t kTokensMax = std::numeric_limits<std::int32_t>::max();  // Ids are i32.

/// The whole cache is below 2^60 bytes. Both regions hold at most its rows, with a position each
/// and page rounding, so nothing that is computed of them overflows then.
bool fits_in_offsets(JobSpec const& spec) {
    std::uint64_t bytes = 0;
    bool const overflow = __builtin_mul_overflow(spec.geometry.cache_bytes(1),
                                                 std::uint64_t{spec.prompt_tokens}, &bytes);
    return !overflow && bytes < (std::uint64_t{1} << 60U);
}

Result<void> check_region(char const* name, std::size_t bytes, std::uint64_t needed) {
    if (bytes >= needed) return {};
    return Error{ErrorCode::InvalidArgument, std::string(name) + " has " + std::to_string(bytes) +
                                                 " bytes of the " + std::to_string(needed) +
                                                 " needed"};
}

bool overlap(std::span<std::byte const> a, std::span<std::byte const> b) {
    std::less<std::byte const*> const before;
    return !a.empty() && !b.empty() && before(a.data(), b.data() + b.size()) &&
           before(b.data(), a.data() + a.size());
}

}  // namespace

PromptShape shape_of(JobSpec const& spec) {
    return {.layers = spec.geometry.layers,
            .kv_heads = spec.geometry.kv_heads,
            .prompt_tokens = spec.prompt_tokens,
            .window = spec.params.window,
            .uniform = spec.uniform};
}

std::uint32_t RowRounding::up(std::uint32_t rows, std::uint32_t most) const noexcept {
    std::uint64_t const missing = (std::uint64_t{offset} + multiple - rows % multiple) % multiple;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(most, rows + missing));
}

std::vector<std::uint32_t> rounded(JobSpec const& spec, std::span<std::uint32_t const> budgets) {
    std::uint32_t const window = spec.params.window;
    std::vector<std::uint32_t> tokens;
    for (std::uint32_t const budget : budgets)
        tokens.push_back(spec.rounding.up(window + budget, spec.prompt_tokens) - window);
    return tokens;
}

std::uint32_t queries_wanted(JobSpec const& spec, Ranking ranking) {
    switch (ranking) {
        case Ranking::Accumulated: return spec.prompt_tokens;
        case Ranking::KeyNorm:
        case Ranking::KeyDifference:
        case Ranking::Surrogate:
        case Ranking::Given: return 0;
        case Ranking::Scores:
        case Ranking::Joined:
        case Ranking::Positions: break;
    }
    return spec.params.window;
}

Waiting waiting_of(JobSpec const& spec, Policy const& policy) {
    if (policy.budgets_known() || policy.budgets_known_by_layer()) return Waiting::NotAtAll;
    return spec.progressive ? Waiting::Staged : Waiting::InSource;
}

StagingLayout staging_layout(JobSpec const& spec, Policy const& policy) {
    StagingLayout layout{.geometry = spec.geometry, .rows_max = 0};
    if (waiting_of(spec, policy) != Waiting::Staged) return layout;
    std::uint32_t limit_max = 0;
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer)
        limit_max = std::max(limit_max, std::ranges::max(policy.stage_limits(layer)));
    layout.rows_max = spec.rounding.up(spec.params.window + limit_max, spec.prompt_tokens);
    return layout;
}

PromptSizes sizes_of(JobSpec const& spec, Policy const& policy) {
    Geometry const& geometry = spec.geometry;
    Ranking const ranking = policy.ranking();
    PromptSizes sizes{
        .dtype = geometry.dtype,
        .layers = geometry.layers,
        .q_heads = geometry.q_heads,
        .kv_heads = geometry.kv_heads,
        .head_dim = geometry.head_dim,
        .tokens = spec.prompt_tokens,
        .window = spec.params.window,
        .accumulates = ranking == Ranking::Accumulated,
        .reduce = spec.params.reduce,
        .scores_keys = ranking == Ranking::KeyNorm || ranking == Ranking::KeyDifference};
    bool const by_surrogate = ranking == Ranking::Surrogate || ranking == Ranking::Joined;
    bool const pools = ranking == Ranking::Scores || ranking == Ranking::Given || by_surrogate;
    if (pools) sizes.kernel = spec.params.kernel;
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        std::uint64_t ids = 0;
        for (std::uint32_t const limit : policy.stage_limits(layer))
            ids += std::min<std::uint64_t>(spec.prompt_tokens - spec.params.window,
                                           std::uint64_t{limit} + spec.rounding.multiple - 1);
        sizes.ids = std::max(sizes.ids, ids);
        sizes.tallies = sizes.tallies || policy.tally_total(layer).has_value();
    }
    std::uint64_t const scores = std::uint64_t{geometry.kv_heads} *
                                 (spec.prompt_tokens - spec.params.window) * sizeof(float);
    std::uint64_t const rows = sizes.ids + std::uint64_t{geometry.kv_heads} * spec.params.window;
    // Scores and mass by the window's attention; then what others rank by, or the pooled scores of
    // the layer, and of those before it that a tally may want.
    std::uint64_t arrays = 2;
    if (sizes.accumulates || sizes.scores_keys || by_surrogate || ranking == Ranking::Given)
        arrays += 1;
    if (ranking == Ranking::Joined) arrays += 2;  // The largest attention, and that smoothed.
    if (pools) arrays += sizes.tallies ? geometry.layers : 1;
    // What is selected, and which rows are copied, while they grow; the scores of an engine that
    // gives such, made dense.
    sizes.buffers_bytes =
        arrays * scores + (sizes.ids + 2 * rows) * sizeof(std::int32_t) +
        (geometry.q_heads + std::uint64_t{1}) * spec.prompt_tokens * sizeof(float);
    if (by_surrogate) {
        Surrogate const& surrogate = *spec.params.profile->surrogate;
        std::uint64_t const rows_of_turns = kTurnBlock + spec.prompt_tokens / kTurnBlock + 1;
        sizes.buffers_bytes +=
            (surrogate.weights.size() + rows_of_turns * 2 * surrogate.frequencies.size()) *
            sizeof(float);
    }
    return sizes;
}

JobNeeds needs_of(JobSpec const& spec) {
    auto const policy = make_policy(spec.params, shape_of(spec));
    if (policy == nullptr) return {};

    JobNeeds needs{.compress = true, .window = queries_wanted(spec, policy->ranking())};
    if (!fits_in_offsets(spec)) {  // No region can be large enough, and open() says why.
        needs.staging_bytes = needs.destination_bytes = std::numeric_limits<std::uint64_t>::max();
        return needs;
    }
    StagingLayout const layout = staging_layout(spec, *policy);
    needs.stage_rows = layout.rows_max;
    needs.staging_bytes = layout.region_bytes();
    // How many tokens hold a share of the attention is not known beforehand.
    std::uint64_t const mean_max =
        spec.params.keep_mass
            ? spec.prompt_tokens
            : std::min<std::uint64_t>(spec.prompt_tokens, std::uint64_t{spec.params.capacity} +
                                                              spec.rounding.multiple - 1);
    needs.destination_bytes = packed_bytes_max(
        spec.geometry, std::uint64_t{spec.geometry.layers} * spec.geometry.kv_heads * mean_max);
    return needs;
}

Result<void> check(JobSpec const& spec,
                   std::span<std::byte const> staging,
                   std::span<std::byte const> destination) {
    DKV_TRY(check(spec.geometry));
    if (spec.prompt_tokens > kTokensMax || !fits_in_offsets(spec))
        return Error{ErrorCode::InvalidArgument,
                     "prompt_tokens is " + std::to_string(spec.prompt_tokens) +
                         ", too many to count the bytes of their cache"};

    JobNeeds const needs = needs_of(spec);
    if (!needs.compress)
        return Error{ErrorCode::InvalidArgument,
                     "a prompt of " + std::to_string(spec.prompt_tokens) +
                         " tokens is kept whole by " + spec.params.name + " at capacity " +
                         std::to_string(spec.params.capacity)};
    DKV_TRY(check_region("staging", staging.size(), needs.staging_bytes));
    DKV_TRY(check_region("destination", destination.size(), needs.destination_bytes));
    if (overlap(staging, destination))
        return Error{ErrorCode::InvalidArgument, "staging and destination overlap"};
    return {};
}

}  // namespace dkv
