#include "cli/render/json.h"

#include "cli/render/text.h"
#include "protocol/policy/parameters.h"

namespace dkv::cli {
Json to_json(wire::PolicyT const& policy) {
    Json json{{"name", policy.name}};
    each_value(
        [&json]<class T>(char const* name, flatbuffers::Optional<T> const& value) {
            if (!value) return;
            if constexpr (std::is_enum_v<T>)
                json[name] = parameter(name).word(static_cast<std::size_t>(*value));
            else
                json[name] = *value;
        },
        policy);
    if (!policy.preset.empty()) json["preset"] = policy.preset;
    if (policy.profile)
        json["profile"] = {{"name", policy.profile->name},   {"layers", policy.profile->layers},
                           {"heads", policy.profile->heads}, {"alpha", policy.profile->alpha},
                           {"floor", policy.profile->floor}, {"kernel", policy.profile->kernel}};
    return json;
}

Json to_json(wire::GeometryT const& geometry) {
    return {{"layers", geometry.layers},
            {"q_heads", geometry.q_heads},
            {"kv_heads", geometry.kv_heads},
            {"head_dim", geometry.head_dim},
            {"dtype", lower(EnumNameDtype(geometry.dtype))}};
}

Json to_json(wire::SavingsT const& savings) {
    return {{"sessions", savings.sessions},
            {"sessions_failed", savings.sessions_failed},
            {"prompt_tokens", savings.prompt_tokens},
            {"bytes_full", savings.bytes_full},
            {"bytes_dropped", savings.bytes_dropped},
            {"bytes_returned", savings.bytes_returned},
            {"bytes_pool", savings.bytes_pool},
            {"bytes_block_table", savings.bytes_block_table},
            {"bytes_peak", savings.bytes_peak},
            {"busy_ns", savings.busy_ns},
            {"wait_ns", savings.wait_ns}};
}

Json to_json(wire::InstanceInfoT const& instance) {
    return {{"instance", hex_id(instance.instance)},
            {"generation", instance.generation},
            {"group", instance.group == 0 ? Json() : Json(hex_id(instance.group))},
            {"pid", instance.pid},
            {"alive", instance.alive},
            {"engine", instance.engine},
            {"model", instance.model},
            {"device", instance.device},
            {"backend", instance.backend},
            {"geometry", to_json(instance.geometry)},
            {"attached_ms", instance.attached_ms},
            {"idle_ms", instance.idle_ms},
            {"sessions_open", instance.sessions_open},
            {"sessions_total", instance.sessions_total},
            {"sessions_failed", instance.sessions_failed},
            {"mapped_bytes", instance.mapped_bytes},
            {"regions", instance.regions},
            {"policy", to_json(instance.policy)},
            {"policy_source", instance.policy_source},
            {"last_error", instance.last_error.empty() ? Json() : Json(instance.last_error)},
            {"savings", to_json(instance.savings)}};
}

Json to_json(wire::SessionInfoT const& session) {
    return {{"instance", hex_id(session.instance)},
            {"session", hex_id(session.session)},
            {"state", lower(EnumNameSessionState(session.state))},
            {"policy", to_json(session.policy)},
            {"prompt_tokens", session.prompt_tokens},
            {"layers_done", session.layers_done},
            {"layers", session.layers},
            {"kv_heads", session.kv_heads},
            {"lengths", session.lengths},
            {"mass_kept", session.mass_kept},
            {"bytes_full", session.bytes_full},
            {"bytes_kept", session.bytes_kept},
            {"bytes_block_table", session.bytes_block_table},
            {"bytes_returned", session.bytes_returned},
            {"bytes_pool", session.bytes_pool},
            {"bytes_peak", session.bytes_peak},
            {"bytes_final", session.bytes_final},
            {"busy_ns", session.busy_ns},
            {"wait_ns", session.wait_ns},
            {"age_ms", session.age_ms},
            {"error", session.error.empty() ? Json() : Json(session.error)}};
}

Json to_json(wire::StatusInfoT const& status) {
    Json json{{"version", status.version},
              {"protocol", status.protocol},
              {"pid", status.pid},
              {"uptime_ms", status.uptime_ms},
              {"endpoint", status.endpoint},
              {"backend", status.backend},
              {"backend_note", status.backend_note},
              {"threads", status.threads},
              {"policy", to_json(status.policy)},
              {"policy_source", status.policy_source},
              {"instances_attached", status.instances},
              {"sessions_open", status.sessions_open},
              {"mapped_bytes", status.mapped_bytes},
              {"errors_total", status.errors_total},
              {"last_error", status.last_error.empty() ? Json() : Json(status.last_error)},
              {"gone", status.gone},
              {"draining", status.draining},
              {"savings", to_json(status.savings)}};
    if (status.limits)
        json["limits"] = {{"sessions_max", status.limits->sessions_max},
                          {"regions_max", status.limits->regions_max},
                          {"message_bytes_max", status.limits->message_bytes_max},
                          {"tokens_max", status.limits->tokens_max}};
    return json;
}

Json to_json(wire::SavingsInfoT const& savings) {
    return {{"total", to_json(savings.total)},
            {"instances", to_json(savings.instances)},
            {"sessions", to_json(savings.sessions)}};
}

Json to_json(wire::PolicyInfoT const& policy) {
    return {
        {"name", policy.name}, {"summary", policy.summary}, {"parameters", to_json(policy.policy)}};
}

Json to_json(wire::PolicyListT const& policies) {
    return {{"default", to_json(policies.default_policy)},
            {"default_source", policies.default_source},
            {"policies", to_json(policies.policies)}};
}

Json to_json(wire::NoticeT const& notice) {
    Json json{{"kind", notice.kind}, {"at_ms", notice.at_ms}};
    if (notice.instance != 0) json["instance"] = hex_id(notice.instance);
    if (notice.session != 0) json["session"] = hex_id(notice.session);
    json["text"] = notice.text;
    if (notice.detail) json["detail"] = to_json(*notice.detail);
    return json;
}

}  // namespace dkv::cli
