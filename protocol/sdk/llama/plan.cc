#include "protocol/sdk/llama/plan.h"

#include <algorithm>

namespace dkv::llama {
namespace {

constexpr std::uint64_t kAlignment = 64;

std::uint64_t layer_queries_bytes(Geometry const& geometry, std::uint32_t rows) noexcept {
    std::uint64_t const bytes = std::uint64_t{rows} * geometry.q_heads * geometry.row_bytes();
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Copies a layer's last queries into the arena.
dkv_rows lay_queries(Source const& source, std::uint32_t layer, std::uint32_t window) {
    Geometry const& geometry = source.rows.geometry;
    std::uint64_t const offset =
        source.queries_offset + layer * layer_queries_bytes(geometry, window);
    source.watch.copy_last(source.layers[layer], window, geometry.dtype,
                           static_cast<std::byte*>(dkv_arena_base(source.arena)) + offset);
    return {source.arena,
            offset,
            static_cast<dkv_dtype>(geometry.dtype),
            geometry.q_heads,
            window,
            geometry.head_dim,
            geometry.head_dim,
            std::uint64_t{geometry.q_heads} * geometry.head_dim,
            1};
}

Result<void> report_layers(dkv_session* session, Source const& source, std::uint32_t window) {
    for (std::uint32_t layer = 0; layer < source.rows.geometry.layers; ++layer) {
        dkv_layer_ready ready{};
        ready.struct_bytes = sizeof ready;
        ready.layer = layer;
        ready.keys = source.rows.keys(source.arena, layer);
        ready.values = source.rows.values(source.arena, layer);
        dkv_rows queries{};
        if (window > 0) {
            queries = lay_queries(source, layer, window);
            ready.queries = &queries;
        }
        if (auto const status = dkv_session_layer_ready(session, &ready); status != DKV_OK) {
            auto const failure = dkv_session_failure(session);
            return error_of(failure != DKV_OK ? failure : status);
        }
    }
    return {};
}

Result<Plan> collect(Session session, Geometry const& geometry) {
    Plan plan;
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        dkv_layer_view view{};
        view.struct_bytes = sizeof view;
        DKV_TRY(checked(dkv_session_layer(session.get(), layer, &view)));
        if (view.form != DKV_LAYER_PACKED)
            return Error{ErrorCode::BadState,
                         "layer " + std::to_string(layer) + " did not come back packed"};
        if (layer == 0) plan.cells = view.lengths[0];
        std::span const lengths(view.lengths, geometry.kv_heads);
        if (std::ranges::any_of(lengths, [&](auto length) { return length != plan.cells; }))
            return Error{
                ErrorCode::Unsupported,
                "the sidecar gave layer " + std::to_string(layer) +
                    " another number of tokens, and llama.cpp's cells need one: it is older "
                    "than this libdkv_llama"};
        plan.positions.insert(plan.positions.end(), view.positions,
                              view.positions + std::size_t{plan.cells} * geometry.kv_heads);
    }
    plan.session = std::move(session);
    return plan;
}

}  // namespace

Error error_of(dkv_status status) {
    return {static_cast<ErrorCode>(status), dkv_last_error()};
}

Result<void> checked(dkv_status status) {
    if (status == DKV_OK) return {};
    return error_of(status);
}

std::uint64_t queries_bytes(Geometry const& geometry, std::uint32_t rows) noexcept {
    return geometry.layers * layer_queries_bytes(geometry, rows);
}

Result<Plan> make_plan(dkv_engine* engine,
                       Source const& source,
                       Wish const& wish,
                       std::uint64_t& session_id) {
    dkv_session_options options{};
    options.struct_bytes = sizeof options;
    options.prompt_tokens = source.rows.tokens();
    options.policy = wish.policy;
    options.uniform = 1;
    options.rope_interleaved = source.rope_interleaved ? 1 : 0;
    dkv_session* opened = nullptr;
    dkv_session_plan answer{};
    answer.struct_bytes = sizeof answer;
    DKV_TRY(checked(dkv_session_open(engine, &options, &opened, &answer)));
    Session session(opened);
    session_id = dkv_session_id(opened);
    if (answer.compress == 0) {
        Plan whole;
        whole.policy = answer.policy;
        return whole;
    }
    if (answer.window > source.watch.rows_max())
        return unsupported("policy " + std::string(answer.policy) + " wants " +
                           std::to_string(answer.window) + " rows of queries, " +
                           std::to_string(source.watch.rows_max()) +
                           " are remembered: set window_max, or a smaller window");
    if (auto const decoded = source.rows.tokens() - source.watch.first(); answer.window > decoded)
        return Error{ErrorCode::BadState,
                     "policy " + std::string(answer.policy) + " scores with the last " +
                         std::to_string(answer.window) + " tokens, and " + std::to_string(decoded) +
                         " were decoded since begin"};
    DKV_TRY(report_layers(session.get(), source, answer.window));
    dkv_result result{};
    result.struct_bytes = sizeof result;
    DKV_TRY(checked(dkv_session_finish(session.get(), wish.timeout_ms, &result)));
    if (result.committed == 0) {
        auto const failure = dkv_session_failure(session.get());
        return failure != DKV_OK ? error_of(failure)
                                 : Error{ErrorCode::BadState, "the session was not committed"};
    }
    auto plan = DKV_TRY(collect(std::move(session), source.rows.geometry));
    plan.policy = answer.policy;
    return plan;
}

}  // namespace dkv::llama
