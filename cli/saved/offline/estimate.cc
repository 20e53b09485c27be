#include "cli/saved/offline/estimate.h"

#include <algorithm>

#include "sidecar/pipeline/savings.h"
#include "sidecar/pipeline/spec.h"
#include "sidecar/policy/text.h"

namespace dkv::offline {
namespace {

/// The most K and V that lie in memory at once: while a layer is taken it is there whole, beside
/// what the layers before it keep.
std::uint64_t peak_when_packed(JobSpec const& spec, std::span<std::uint32_t const> lengths) {
    std::uint64_t const whole =
        spec.geometry.cache_bytes(spec.prompt_tokens) / spec.geometry.layers;
    std::uint64_t packed = 0;
    std::uint64_t peak = 0;
    for (std::size_t first = 0; first < lengths.size(); first += spec.geometry.kv_heads) {
        peak = std::max(peak, packed + whole);
        packed += kept_bytes(spec.geometry, lengths.subspan(first, spec.geometry.kv_heads));
    }
    return std::max(peak, packed);
}

/// Staged layers have their stage limit until an update cuts all that have come to the budget of
/// the whole prompt.
std::uint64_t peak_when_staged(JobSpec const& spec, Policy const& policy) {
    Geometry const& geometry = spec.geometry;
    std::uint64_t const whole = spec.prompt_tokens;
    std::uint64_t const budget = std::uint64_t{geometry.layers} * spec.params.base();
    std::uint64_t prefix_staged = 0;  // Tokens of each head, over the layers so far.
    std::uint64_t peak = 0;
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        std::uint64_t const windows = std::uint64_t{layer + 1} * spec.params.window;
        std::uint64_t const limit = std::ranges::max(policy.stage_limits(layer));
        peak = std::max(peak, prefix_staged + limit + windows + whole);
        prefix_staged += limit;
        if (policy.tally_total(layer)) prefix_staged = std::min(prefix_staged, budget);
    }
    return peak * geometry.token_bytes();
}

}  // namespace

Result<Estimate> estimate(Geometry const& geometry,
                          std::uint32_t prompt_tokens,
                          PolicyRequest const& request,
                          std::string_view model) {
    DKV_TRY(check(geometry));
    if (prompt_tokens == 0)
        return Error{ErrorCode::InvalidArgument, "prompt_tokens is 0, not at least 1"};
    PolicyParams params = DKV_TRY(resolve(request, model));
    if (params.keep_mass)
        return Error{ErrorCode::Unsupported,
                     "how many tokens hold " + text(*params.keep_mass) +
                         " of the attention shows only once there is attention: dkv compact or "
                         "dkv sweep on a saved cache"};
    params = DKV_TRY(sized(params, geometry, prompt_tokens));
    JobSpec const spec{.geometry = geometry, .prompt_tokens = prompt_tokens, .params = params};

    Estimate made{.params = params,
                  .bytes_full = geometry.cache_bytes(prompt_tokens),
                  .bytes_kept = 0,
                  .lengths = {},
                  .peak_bytes = 0};
    std::size_t const heads = std::size_t{geometry.layers} * geometry.kv_heads;
    auto const policy = make_policy(params, shape_of(spec));
    if (policy == nullptr) {
        made.lengths.assign(heads, prompt_tokens);
        made.bytes_kept = made.peak_bytes = made.bytes_full;
        return made;
    }
    std::vector<std::uint32_t> lengths;
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer)
        for (std::uint32_t const budget : policy->budgets().layer(layer))
            lengths.push_back(params.window + budget);
    if (waiting_of(spec, *policy) == Waiting::Staged) {
        made.bytes_kept = geometry.cache_bytes(params.capacity);
        made.peak_bytes = peak_when_staged(spec, *policy);
        return made;
    }
    // A threshold inside each layer: the layers alike, their heads not.
    if (!policy->budgets_known()) lengths.assign(heads, params.capacity);
    made.bytes_kept = kept_bytes(geometry, lengths);
    made.peak_bytes = peak_when_packed(spec, lengths);
    if (policy->budgets_known()) made.lengths = std::move(lengths);
    return made;
}

}  // namespace dkv::offline
