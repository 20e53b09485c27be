// dkv.h's functions on sessions.
#include <algorithm>
#include <cstring>
#include <utility>

#include "protocol/policy/parameters.h"
#include "protocol/sdk/abi.h"

using dkv::Error;
using dkv::ErrorCode;
using dkv::Result;
using dkv::sdk::check_process;
using dkv::sdk::check_struct;
using dkv::sdk::guarded;
using dkv::sdk::milliseconds;
using dkv::sdk::null_pointer;
using dkv::sdk::Session;
using dkv::sdk::whole;

namespace {

Result<Session*> session_of(dkv_session const* session) {
    if (session == nullptr) return null_pointer("session");
    DKV_TRY(check_process(session->session->engine()));
    return session->session.get();
}

Result<std::shared_ptr<dkv::sdk::Arena>> arena_of(char const* what, dkv_rows const& rows) {
    if (rows.arena != nullptr) return rows.arena->arena;
    return Error{ErrorCode::InvalidArgument, std::string(what) + " have no arena"};
}

Result<dkv_policy> policy_of(dkv_policy const& given) {
    dkv_policy defaults;
    dkv_policy_init(&defaults);
    return whole("options->policy", given, offsetof(dkv_policy, granularity), defaults);
}

void describe_plan(Session const& session, dkv_session_plan& plan) {
    auto const& policy = session.policy();
    plan.compress = session.is_compressing() ? 1 : 0;
    plan.window = session.window();
    plan.capacity = policy.capacity.value_or(0);
    std::size_t const length = std::min(policy.name.size(), sizeof plan.policy - 1);
    std::memcpy(plan.policy, policy.name.data(), length);
    plan.policy[length] = '\0';
}

}  // namespace

Result<void> dkv::sdk::report_layer(dkv_session* session,
                                    dkv_layer_ready const* ready,
                                    std::optional<Stream> stream) {
    auto* const target = DKV_TRY(session_of(session));
    if (ready == nullptr) return null_pointer("ready");
    LayerRows rows;
    rows.ready = DKV_TRY(whole("ready", *ready, offsetof(dkv_layer_ready, sink_logits), {}));
    rows.keys = DKV_TRY(arena_of("keys", ready->keys));
    rows.values = DKV_TRY(arena_of("values", ready->values));
    if (ready->queries != nullptr) rows.queries = DKV_TRY(arena_of("queries", *ready->queries));
    if (ready->scores != nullptr) rows.scores = DKV_TRY(arena_of("scores", *ready->scores));
    return target->layer_ready(rows, stream);
}

void dkv_policy_defaults(dkv_policy* policy, std::uint32_t struct_bytes) {
    if (policy == nullptr) return;
    dkv_policy defaults{};
    defaults.struct_bytes = struct_bytes;
    dkv::each_value(
        []<class T>(char const*, T& field) {
            if constexpr (std::is_same_v<T, std::uint32_t>) field = DKV_DEFAULT;
            if constexpr (std::is_same_v<T, double> || std::is_same_v<T, std::int32_t>) field = -1;
        },
        defaults);
    std::memset(policy, 0, struct_bytes);
    std::memcpy(policy, &defaults, std::min<std::size_t>(struct_bytes, sizeof defaults));
}

#undef dkv_policy_init
/// For engines that were compiled when it was no macro.
extern "C" void dkv_policy_init(dkv_policy* policy) {
    dkv_policy_defaults(policy, sizeof *policy);
}

dkv_status dkv_session_open(dkv_engine* engine,
                            dkv_session_options const* options,
                            dkv_session** session,
                            dkv_session_plan* plan) {
    return guarded([&]() -> Result<void> {
        if (engine == nullptr) return null_pointer("engine");
        if (session == nullptr) return null_pointer("session");
        *session = nullptr;
        if (options == nullptr) return null_pointer("options");
        DKV_TRY(check_struct("plan", plan));
        auto wanted =
            DKV_TRY(whole("options", *options, offsetof(dkv_session_options, row_multiple), {}));
        dkv_policy policy;
        if (options->policy != nullptr) {
            policy = DKV_TRY(policy_of(*options->policy));
            wanted.policy = &policy;
        }
        DKV_TRY(check_process(*engine->engine));
        auto opened = DKV_TRY(Session::open(engine->engine, wanted));
        describe_plan(*opened, *plan);
        *session = new dkv_session{std::move(opened)};
        return {};
    });
}

dkv_status dkv_session_layer_ready(dkv_session* session, dkv_layer_ready const* ready) {
    return guarded(
        [&]() -> Result<void> { return dkv::sdk::report_layer(session, ready, std::nullopt); });
}

dkv_status dkv_session_poll(dkv_session* session, dkv_event* event, uint32_t timeout_ms) {
    return guarded([&]() -> Result<void> {
        auto* const target = DKV_TRY(session_of(session));
        DKV_TRY(check_struct("event", event));
        auto const next = target->poll(milliseconds(timeout_ms));
        event->kind = next.kind;
        event->layer = next.layer;
        // The one call that succeeds and yet has an error to tell.
        if (next.kind == DKV_EVENT_FAILED && target->failure())
            dkv::sdk::remember(target->failure()->message);
        return {};
    });
}

dkv_status dkv_session_finish(dkv_session* session, uint32_t timeout_ms, dkv_result* result) {
    return guarded([&]() -> Result<void> {
        auto* const target = DKV_TRY(session_of(session));
        DKV_TRY(check_struct("result", result));
        auto const bytes = result->struct_bytes;
        *result = dkv_result{};
        result->struct_bytes = bytes;
        auto const timeout =
            timeout_ms == 0 ? target->engine().options().timeout : milliseconds(timeout_ms);
        auto const totals = DKV_TRY(target->finish(timeout));
        result->committed = target->is_committed() ? 1 : 0;
        result->bytes_full = totals.bytes_full;
        result->bytes_kept = totals.bytes_kept;
        result->bytes_block_table = totals.bytes_block_table;
        result->busy_ns = totals.busy_ns;
        return {};
    });
}

dkv_status dkv_session_layer(dkv_session* session, uint32_t layer, dkv_layer_view* view) {
    return guarded([&]() -> Result<void> {
        auto* const target = DKV_TRY(session_of(session));
        DKV_TRY(check_struct("view", view));
        auto const bytes = view->struct_bytes;
        *view = DKV_TRY(target->layer(layer));
        view->struct_bytes = bytes;
        return {};
    });
}

dkv_status dkv_session_take_arena(dkv_session* session, dkv_layer_form form, dkv_arena** arena) {
    return guarded([&]() -> Result<void> {
        if (arena == nullptr) return null_pointer("arena");
        *arena = nullptr;
        auto* const target = DKV_TRY(session_of(session));
        auto handle = std::make_unique<dkv_arena>();
        handle->arena = DKV_TRY(target->take_arena(form));
        *arena = handle.release();
        return {};
    });
}

uint64_t dkv_session_id(dkv_session const* session) {
    auto const target = session_of(session);
    return target ? target.value()->id() : 0;
}

dkv_status dkv_session_returned_to_pool(dkv_session* session, uint64_t bytes) {
    return guarded([&]() -> Result<void> {
        auto* const target = DKV_TRY(session_of(session));
        target->returned_to_pool(bytes);
        return {};
    });
}

dkv_status dkv_session_adopted(dkv_session* session,
                               uint64_t bytes_returned,
                               uint64_t bytes_peak,
                               uint64_t bytes_final) {
    return guarded([&]() -> Result<void> {
        auto* const target = DKV_TRY(session_of(session));
        return target->adopted(bytes_returned, bytes_peak, bytes_final);
    });
}

dkv_status dkv_session_failure(dkv_session const* session) {
    return guarded([&]() -> Result<void> {
        auto* const target = DKV_TRY(session_of(session));
        if (target->failure()) return *target->failure();
        return {};
    });
}

void dkv_session_close(dkv_session* session, char const* reason) {
    guarded([&]() -> Result<void> {
        if (session == nullptr || !session->session->engine().is_own_process()) return {};
        session->session->close(reason == nullptr ? "" : reason);
        delete session;
        return {};
    });
}
