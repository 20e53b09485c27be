#include <array>
#include <unistd.h>

#include "protocol/base/version.h"
#include "protocol/schema/envelope.h"
#include "sidecar/policy/policy.h"
#include "sidecar/rpc/command.h"
#include "sidecar/rpc/convert.h"

namespace dkv::rpc {
namespace {

Reply get_status(Context& context, Caller const& caller, wire::GetStatusT const&) {
    auto const facts = context.table.facts();
    wire::StatusInfoT info;
    info.version = kVersion;
    info.protocol = kProtocolVersion;
    info.pid = static_cast<std::uint32_t>(::getpid());
    info.uptime_ms = caller.now - context.started_at;
    info.endpoint = context.endpoint;
    info.backend = facts.backend;
    info.backend_note = facts.backend_note;
    info.threads = facts.threads;
    info.policy = to_wire(facts.policy.params);
    info.policy_source = name_of(facts.policy.source);
    info.instances = facts.instances;
    info.sessions_open = facts.sessions_open;
    info.errors_total = facts.errors_total;
    info.last_error = facts.last_error;
    info.savings = to_wire(facts.savings);
    info.limits = to_wire(context.config.limits);
    info.mapped_bytes = facts.mapped_bytes;
    info.gone = facts.gone;
    info.draining = facts.draining;
    return body_of(std::move(info));
}

Reply list_instances(Context& context, Caller const& caller, wire::ListInstancesT const&) {
    wire::InstanceListT list;
    list.instances = to_wire(context.table.instances(caller.now));
    return body_of(std::move(list));
}

Reply list_sessions(Context& context, Caller const& caller, wire::ListSessionsT const& message) {
    wire::SessionListT list;
    list.sessions =
        to_wire(DKV_TRY(context.table.sessions({.instance = message.instance,
                                                .session = message.session,
                                                .spans = message.spans && message.session != 0},
                                               caller.now)));
    return body_of(std::move(list));
}

Reply get_savings(Context& context, Caller const& caller, wire::GetSavingsT const&) {
    wire::SavingsInfoT info;
    info.total = to_wire(context.table.facts().savings);
    info.instances = to_wire(context.table.instances(caller.now));
    info.sessions = to_wire(DKV_TRY(context.table.sessions({}, caller.now)));
    return body_of(std::move(info));
}

Reply list_policies(Context& context, Caller const&, wire::ListPoliciesT const&) {
    wire::PolicyListT list;
    for (auto const& entry : policies()) {
        PolicyRequest request;
        request.name = entry.name;
        auto info = std::make_unique<wire::PolicyInfoT>();
        info->name = entry.name;
        info->summary = entry.summary;
        info->policy = to_wire(DKV_TRY(resolve(request)));
        list.policies.push_back(std::move(info));
    }
    auto const chosen = context.table.default_policy();
    list.default_policy = to_wire(chosen.params);
    list.default_source = name_of(chosen.source);
    return body_of(std::move(list));
}

Reply set_policy(Context& context, Caller const&, wire::SetPolicyT const& message) {
    std::optional<PolicyRequest> request;
    if (message.policy) request = DKV_TRY(from_wire(*message.policy));
    DKV_TRY(context.table.set_policy(message.instance, request));
    return body_of(wire::DoneT());
}

Reply subscribe(Context& context, Caller const& caller, wire::SubscribeT const& message) {
    if (message.on)
        DKV_TRY(context.subscribers.add(caller.peer));
    else
        context.subscribers.remove(caller.peer);
    return body_of(wire::DoneT());
}

Reply detach(Context& context, Caller const& caller, wire::DetachT const& message) {
    DKV_TRY(context.table.detach(caller, message.instance));
    return body_of(wire::DoneT());
}

Reply stop(Context& context, Caller const&, wire::StopT const& message) {
    if (message.boot_id != context.boot_id)
        return Error{ErrorCode::InvalidArgument,
                     "the boot id is of another sidecar: ask for the status first"};
    context.stopping = true;
    return body_of(wire::DoneT());
}

constexpr std::array kControllerCommands{
    command<wire::GetStatusT, get_status>("GetStatus", Reach::Anyone),
    command<wire::ListInstancesT, list_instances>("ListInstances", Reach::Controller),
    command<wire::ListSessionsT, list_sessions>("ListSessions", Reach::Controller),
    command<wire::GetSavingsT, get_savings>("GetSavings", Reach::Controller),
    command<wire::ListPoliciesT, list_policies>("ListPolicies", Reach::Controller),
    command<wire::SetPolicyT, set_policy>("SetPolicy", Reach::Controller),
    command<wire::SubscribeT, subscribe>("Subscribe", Reach::Controller),
    command<wire::DetachT, detach>("Detach", Reach::Controller),
    command<wire::StopT, stop>("Stop", Reach::Controller),
};

}  // namespace

std::span<Command const> controller_commands() noexcept {
    return kControllerCommands;
}

}  // namespace dkv::rpc
