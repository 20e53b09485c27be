#include "sidecar/offline/side.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include <fmt/format.h>

#include "kernels/cpu/elements.h"
#include "protocol/base/kv_layout.h"
#include "sidecar/pipeline/job.h"
#include "sidecar/policy/reference/forms.h"

namespace dkv::offline {
namespace {

Error refuse(std::string message) {
    return {ErrorCode::InvalidArgument, std::move(message)};
}

Result<void> check_queries(SavedCache const& file, std::string const& name, std::uint32_t wanted) {
    if (file.facts().query_rows >= wanted && file.facts().query_rows > 0) return {};
    return refuse(fmt::format(
        "{} needs the queries of the last {} tokens, and the file has {}", name, wanted,
        file.facts().query_rows == 0 ? "none" : fmt::format("{}", file.facts().query_rows)));
}

/// The whole prompt, for every KV head.
void keep_all(Side& side, SavedCache const& file) {
    std::vector<std::int32_t> every(file.facts().prompt_tokens);
    std::iota(every.begin(), every.end(), 0);
    side.kept.assign(file.geometry().layers, {file.geometry().kv_heads, every});
}

/// [kv_heads] positions of a packed layer.
Result<std::vector<std::vector<std::int32_t>>> positions_of(Backend& backend,
                                                            Geometry const& geometry,
                                                            LayerProgress const& at,
                                                            std::span<std::byte const> packed) {
    PackedLayer const place = packed_layer(geometry, at.lengths, at.destination_offset);
    std::vector<std::int32_t> all(place.head_rows[geometry.kv_heads]);
    DKV_TRY(
        backend.download(packed.subspan(place.positions_offset, all.size() * sizeof(std::int32_t)),
                         std::as_writable_bytes(std::span(all))));
    std::vector<std::vector<std::int32_t>> heads;
    for (std::uint32_t head = 0; head < geometry.kv_heads; ++head)
        heads.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(place.head_rows[head]),
                           all.begin() + static_cast<std::ptrdiff_t>(place.head_rows[head + 1]));
    return heads;
}

/// What the job is told of a layer: queries as far as it wants them, and for the mass else.
LayerSource source_of(CacheFacts const& facts, SavedLayer const& saved, std::uint32_t queries) {
    LayerSource source{.keys = saved.keys,
                       .values = saved.values,
                       .queries = {},
                       .scores = {},
                       .scale = facts.scale,
                       .softcap = facts.softcap};
    if (queries > 0) source.queries = last_queries(saved, queries);
    return source;
}

Result<void> run_job(Backend& backend, SavedCache const& file, Side& side) {
    JobSpec const spec{.geometry = file.geometry(),
                       .prompt_tokens = file.facts().prompt_tokens,
                       .params = side.params,
                       .progressive = false};
    JobNeeds const needs = needs_of(spec);
    if (!needs.compress) {
        keep_all(side, file);
        return {};
    }
    // Policies that do not rank by queries do without where there are none.
    std::uint32_t const wanted = std::max(needs.window, spec.params.window);
    bool const optional = side.name == "streamingllm" || needs.window == 0;
    if (!optional) DKV_TRY(check_queries(file, side.name, wanted));
    std::uint32_t const given = file.facts().query_rows >= wanted ? wanted : 0;

    auto const staging = DKV_TRY(backend.allocate(needs.staging_bytes));
    auto const packed = DKV_TRY(backend.allocate(needs.destination_bytes));
    std::vector<SavedLayer> layers;  // The job reads them until the last is packed.
    auto const job = DKV_TRY(Job::open(backend, spec, staging->bytes(), packed->bytes()));
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer) {
        layers.push_back(DKV_TRY(file.layer(layer)));
        DKV_TRY(job->layer_ready(layer, source_of(file.facts(), layers.back(), given)));
    }
    for (std::uint32_t layer = 0; layer < spec.geometry.layers; ++layer) {
        auto const at = DKV_TRY(job->pack(layer));
        side.kept.push_back(DKV_TRY(positions_of(backend, spec.geometry, at, packed->bytes())));
    }
    return {};
}

std::vector<float> as_f32(RowsView const& view) {
    std::vector<float> values;
    values.reserve(std::size_t{view.heads} * view.tokens * view.head_dim);
    for (std::uint32_t head = 0; head < view.heads; ++head)
        for (std::uint32_t token = 0; token < view.tokens; ++token)
            for (std::uint32_t dim = 0; dim < view.head_dim; ++dim)
                values.push_back(cpu::load_f32(
                    view.row(head, token) + dim * view.dim_stride * bytes_of(view.dtype),
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
    // Without queries nobody knows how many query heads there are, and rows are stored for each.
    std::uint32_t const wanted = std::max(form->queries_wanted(), 1U);
    DKV_TRY(check_queries(file, side.name, wanted));
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
                                            .dtype = geometry.dtype});
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
        return refuse("keep_mass is none of " + name + "'s parameters: give a capacity");
    Side side{.name = name,
              .params = DKV_TRY(sized(DKV_TRY(resolve(wish, file.facts().model)), file.geometry(),
                                      file.facts().prompt_tokens)),
              .kept = {}};
    DKV_TRY(reference ? run_form(file, side) : run_job(backend, file, side));
    return side;
}

}  // namespace dkv::offline
