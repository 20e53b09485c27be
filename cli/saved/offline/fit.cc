#include "cli/saved/offline/fit.h"

#include <algorithm>

#include "sidecar/pipeline/spec.h"

namespace dkv::offline {
namespace {

using Lengths = std::vector<std::uint32_t>;

/// What the policy's budgets come to at this capacity; equal ones where they are not known yet.
Result<Lengths> lengths_at(std::uint32_t capacity,
                           PolicyParams const& params,
                           Geometry const& geometry,
                           std::uint32_t prompt_tokens,
                           bool as_if_equal) {
    PolicyParams wish = params;
    wish.capacity = capacity;
    JobSpec const spec{.geometry = geometry,
                       .prompt_tokens = prompt_tokens,
                       .params = DKV_TRY(sized(wish, geometry, prompt_tokens)),
                       .progressive = false};
    auto const policy = make_policy(spec.params, shape_of(spec));
    Lengths lengths(std::size_t{geometry.layers} * geometry.kv_heads,
                    std::min(capacity, prompt_tokens));
    if (as_if_equal || policy == nullptr || !policy->budgets_known()) return lengths;
    auto length = lengths.begin();
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer)
        for (std::uint32_t const budget : policy->budgets().layer(layer))
            *length++ = params.window + budget;
    return lengths;
}

/// One more token in every head, or one less in those that have any; whether that was possible.
bool change_layer(RankedLayer& layer, int change) {
    Lengths lengths = layer.lengths(0);
    Lengths const before = lengths;
    for (std::size_t head = 0; head < lengths.size(); ++head) {
        if (change > 0 && lengths[head]++ == layer.ranks->lengths[head]) return false;
        if (change < 0 && lengths[head] > 0) --lengths[head];
    }
    layer.resize(lengths);
    return lengths != before;
}

/// Whether every one of these layers could be changed; if not, none is.
bool change_layers(Plan& plan, std::uint32_t first, std::uint32_t end, int change) {
    for (std::uint32_t layer = first; layer < end; ++layer)
        if (!change_layer(plan.layer(layer), change)) {
            while (layer-- > first)
                change_layer(plan.layer(layer), -change);
            return false;
        }
    return true;
}

}  // namespace

Result<PolicyParams> capacity_for_bytes(std::uint64_t bytes,
                                        PolicyParams const& params,
                                        Geometry const& geometry,
                                        std::uint32_t prompt_tokens,
                                        bool as_if_equal,
                                        SizeOf const& size_of) {
    auto const size_at = [&](std::uint32_t capacity) -> Result<std::uint64_t> {
        return size_of(DKV_TRY(lengths_at(capacity, params, geometry, prompt_tokens, as_if_equal)));
    };
    PolicyParams result = params;
    if (DKV_TRY(size_at(prompt_tokens)) <= bytes || prompt_tokens <= params.window) {
        result.capacity = std::max(prompt_tokens, params.window);
        return result;
    }
    std::uint64_t const least = DKV_TRY(size_at(params.window));
    if (least > bytes)
        return Error{ErrorCode::InvalidArgument, "bytes is " + std::to_string(bytes) +
                                                     ", and a file of the window of " +
                                                     std::to_string(params.window) +
                                                     " tokens alone has " + std::to_string(least)};
    std::uint32_t fits = params.window;
    std::uint32_t too_many = prompt_tokens;
    while (too_many - fits > 1) {
        std::uint32_t const middle = fits + (too_many - fits) / 2;
        (DKV_TRY(size_at(middle)) <= bytes ? fits : too_many) = middle;
    }
    result.capacity = fits;
    return result;
}

Result<void> fit(Plan& plan, std::uint64_t bytes, bool uniform, SizeOf const& size_of) {
    std::uint32_t const layers = plan.layers_done();
    std::uint32_t const step = uniform ? layers : 1;
    auto const fits = [&]() -> Result<bool> {
        return DKV_TRY(size_of(plan.kept_lengths())) <= bytes;
    };
    std::uint32_t stuck = 0;
    for (std::uint32_t end = layers; !DKV_TRY(fits()); end = end == step ? layers : end - step) {
        stuck = change_layers(plan, end - step, end, -1) ? 0 : stuck + 1;
        if (stuck > layers)
            return Error{ErrorCode::InvalidArgument,
                         "no file of this cache has as few as " + std::to_string(bytes) + " bytes"};
    }
    for (std::uint32_t first = 0; first < layers; first += step) {
        if (!change_layers(plan, first, first + step, 1)) continue;
        if (DKV_TRY(fits())) continue;
        change_layers(plan, first, first + step, -1);
        break;
    }
    return {};
}

Filled fill(Plan& plan, Alike alike) {
    auto const before = plan.kept_lengths();
    auto const [shortest, longest] = std::ranges::minmax(before);
    Filled const filled{.shortest = shortest, .longest = longest};
    std::uint32_t const window = plan.spec().params.window;
    for (std::uint32_t index = 0; index < plan.layers_done(); ++index) {
        RankedLayer& layer = plan.layer(index);
        auto const own = layer.lengths(0);
        std::uint32_t const most =
            alike == Alike::Everything ? longest - window : std::ranges::max(own);
        if (alike != Alike::Nothing) layer.resize(Lengths(own.size(), most));
    }
    return filled;
}

std::uint32_t spare_to_fill(Policy const& policy, std::uint32_t layers) {
    std::uint32_t least = UINT32_MAX;
    std::uint32_t most = 0;
    for (std::uint32_t layer = 0; layer < layers; ++layer)
        for (std::uint32_t const limit : policy.stage_limits(layer)) {
            least = std::min(least, limit);
            most = std::max(most, limit);
        }
    return most - least;
}

}  // namespace dkv::offline
