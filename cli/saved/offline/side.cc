#include "cli/saved/offline/side.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include <fmt/format.h>

#include "cli/saved/offline/profiles.h"
#include "cli/saved/offline/source.h"
#include "cli/saved/offline/walk.h"
#include "cli/saved/reference/forms.h"
#include "kernels/host.h"
#include "sidecar/pipeline/spec.h"

namespace dkv::offline {
namespace {

/// The whole prompt, for every KV head.
void keep_all(Side& side, SavedCache const& file) {
    std::vector<std::int32_t> every(file.facts().prompt_tokens);
    std::iota(every.begin(), every.end(), 0);
    side.kept.assign(file.geometry().layers, {file.geometry().kv_heads, every});
}

/// A layer's rows, head by head.
std::vector<std::vector<std::int32_t>> positions_of(Plan const& plan, std::uint32_t layer) {
    std::vector<std::vector<std::int32_t>> heads;
    auto const rows = kept_rows(plan, layer);
    auto from = rows.begin();
    for (std::uint32_t const length : plan.layer(layer).lengths(plan.spec().params.window)) {
        heads.emplace_back(from, from + length);
        from += length;
    }
    return heads;
}

Result<void> run_plan(Backend& backend, SavedCache const& file, Side& side) {
    JobSpec const spec{.geometry = file.geometry(),
                       .prompt_tokens = file.facts().prompt_tokens,
                       .params = side.params,
                       .progressive = false};
    auto const policy = make_policy(spec.params, shape_of(spec));
    if (policy == nullptr) {
        keep_all(side, file);
        return {};
    }
    if (auto const wanted = queries_needed(file.facts(), side.params, policy->ranking()))
        DKV_TRY(check_queries(file.facts(), side.name, wanted));
    Ranker ranker(backend, spec.geometry, spec.prompt_tokens);
    Plan plan = DKV_TRY(Plan::create(backend, spec, ranker));
    DKV_TRY(walk(file, {}, ranker, std::span(&plan, 1)));
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer)
        side.kept.push_back(positions_of(plan, layer));
    return {};
}

std::vector<float> as_f32(RowsView const& view) {
    std::vector<float> values;
    values.reserve(std::size_t{view.heads} * view.tokens * view.head_dim);
    for (std::uint32_t head = 0; head < view.heads; ++head)
        for (std::uint32_t token = 0; token < view.tokens; ++token)
            for (std::uint32_t dim = 0; dim < view.head_dim; ++dim)
                values.push_back(
                    load_f32(view.row(head, token) + dim * view.dim_stride * bytes_of(view.dtype),
                             view.dtype));
    return values;
}

/// The published codes divide by sqrt(head_dim), and that is all.
Result<void> check_logits(SavedCache const& file, std::string const& name) {
    double const own = 1 / std::sqrt(static_cast<double>(file.geometry().head_dim));
    bool const scaled = file.facts().scale != 0 &&
                        std::abs(static_cast<double>(file.facts().scale) / own - 1) > 1e-6;
    if (!scaled && file.facts().softcap == 0) return {};
    return Error{ErrorCode::Unsupported,
                 fmt::format("{} knows no scale of {} and no soft cap of {}", name,
                             file.facts().scale, file.facts().softcap)};
}

Result<void> run_form(SavedCache const& file, Side& side) {
    DKV_TRY(check_logits(file, side.name));
    Geometry const& geometry = file.geometry();
    auto const form =
        DKV_TRY(reference::make_form(side.name, side.params, geometry, file.facts().prompt_tokens));
    // Without queries the number of query heads is unknown, but rows are stored for each.
    std::uint32_t const wanted = std::max(form->queries_wanted(), 1U);
    DKV_TRY(check_queries(file.facts(), side.name, wanted));
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        auto const saved = DKV_TRY(file.layer(layer));
        auto const queries = as_f32(last_queries(saved, wanted));
        auto const keys = as_f32(saved.keys);
        auto const added = form->add_layer({.queries = queries,
                                            .keys = keys,
                                            .q_heads = geometry.q_heads,
                                            .kv_heads = geometry.kv_heads,
                                            .query_rows = wanted,
                                            .tokens = file.facts().prompt_tokens,
                                            .head_dim = geometry.head_dim,
                                            .dtype = geometry.dtype,
                                            .sink_logits = saved.sink_logits});
        if (!added)
            return Error{added.error().code,
                         fmt::format("{}, layer {}: {}", side.name, layer, added.error().message)};
    }
    side.kept = form->stored();
    return {};
}

}  // namespace

bool is_reference(std::string_view name) noexcept {
    return std::ranges::find(reference_forms(), name) != reference_forms().end();
}

RowsView last_queries(SavedLayer const& layer, std::uint32_t count) {
    RowsView view = layer.queries;
    DKV_ASSERT(count <= view.tokens);
    view.data = view.row(0, view.tokens - count);
    view.tokens = count;
    return view;
}

Result<Side> run_side(Backend& backend,
                      SavedCache const& file,
                      std::string const& name,
                      PolicyRequest const& request) {
    bool const reference = is_reference(name);
    PolicyRequest wish = request;
    wish.name = reference ? name.substr(0, name.find('-')) : name;
    if (reference && request.keep_mass)
        return invalid("keep_mass is none of " + name + "'s parameters: give a capacity");
    Side side{.name = name, .params = DKV_TRY(params_for(wish, file.facts())), .kept = {}};
    DKV_TRY(reference ? run_form(file, side) : run_plan(backend, file, side));
    return side;
}

}  // namespace dkv::offline
