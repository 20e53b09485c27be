#include <array>

#include "protocol/base/version.h"
#include "sidecar/rpc/command.h"
#include "sidecar/rpc/convert.h"

namespace dkv::rpc {
namespace {

Reply hello(Context& context, Caller const& caller, wire::HelloT const& message) {
    auto const welcomed = DKV_TRY(context.table.hello(caller, DKV_TRY(from_wire(message))));
    wire::WelcomeT welcome;
    welcome.heartbeat_ms = context.config.heartbeat_ms;
    welcome.limits = to_wire(context.config.limits);
    welcome.policy = to_wire(welcomed.policy.params);
    welcome.version = kVersion;
    welcome.fd_socket = context.fd_socket;
    welcome.backend = welcomed.backend;
    return body_of(std::move(welcome));
}

Reply register_region(Context& context,
                      Caller const& caller,
                      wire::RegisterRegionT const& message) {
    auto const answer = DKV_TRY(context.table.register_region(caller, message.instance,
                                                              DKV_TRY(from_wire(message.source)),
                                                              message.bytes, message.writable));
    auto const* const region = std::get_if<std::uint64_t>(&answer);
    if (region == nullptr) return wire::BodyUnion();
    wire::RegionRegisteredT registered;
    registered.region = *region;
    return body_of(std::move(registered));
}

Reply unregister_region(Context& context,
                        Caller const& caller,
                        wire::UnregisterRegionT const& message) {
    auto const answer =
        DKV_TRY(context.table.unregister_region(caller, message.instance, message.region));
    if (std::holds_alternative<Later>(answer)) return wire::BodyUnion();
    return body_of(wire::DoneT());
}

Reply register_events(Context& context,
                      Caller const& caller,
                      wire::RegisterEventsT const& message) {
    DKV_TRY(context.table.register_events(caller, message.instance, DKV_TRY(from_wire(message))));
    return wire::BodyUnion();
}

Reply open_session(Context& context, Caller const& caller, wire::OpenSessionT const& message) {
    OpenRequest request{.session = message.session,
                        .prompt_tokens = message.prompt_tokens,
                        .progressive = message.progressive,
                        .wish = std::nullopt,
                        .row_multiple = message.row_multiple,
                        .row_offset = message.row_offset,
                        .uniform = message.uniform,
                        .rope_interleaved = message.rope_interleaved};
    if (message.policy) request.wish = DKV_TRY(from_wire(*message.policy));
    auto const opened = DKV_TRY(context.table.open_session(caller, message.instance, request));
    wire::SessionOpenedT reply;
    reply.policy = to_wire(opened.policy);
    reply.compress = opened.needs.compress;
    reply.window = opened.needs.window;
    reply.stage_rows = opened.needs.stage_rows;
    reply.staging_bytes = opened.needs.staging_bytes;
    reply.destination_bytes = opened.needs.destination_bytes;
    return body_of(std::move(reply));
}

Reply bind_buffers(Context& context, Caller const& caller, wire::BindBuffersT const& message) {
    DKV_TRY(context.table.bind_buffers(caller, message.instance, message.session,
                                       message.staging_region, message.destination_region));
    return body_of(wire::DoneT());
}

Reply layer_ready(Context& context, Caller const& caller, wire::LayerReadyT const& message) {
    DKV_TRY(context.table.layer_ready(caller, message.instance, message.session,
                                      DKV_TRY(from_wire(message))));
    return body_of(wire::DoneT());
}

Reply adopted(Context& context, Caller const& caller, wire::AdoptedT const& message) {
    DKV_TRY(context.table.adopted(caller, message.instance, message.session,
                                  {.returned = message.bytes_returned,
                                   .peak = message.bytes_peak,
                                   .final_ = message.bytes_final,
                                   .pool = message.bytes_pool}));
    return body_of(wire::DoneT());
}

Reply close_session(Context& context, Caller const& caller, wire::CloseSessionT const& message) {
    DKV_TRY(context.table.close_session(caller, message.instance, message.session, message.reason));
    return body_of(wire::DoneT());
}

Reply goodbye(Context& context, Caller const& caller, wire::GoodbyeT const& message) {
    DKV_TRY(context.table.goodbye(caller, message.instance));
    return body_of(wire::DoneT());
}

Reply heartbeat(Context& context, Caller const& caller, wire::HeartbeatT const& message) {
    DKV_TRY(context.table.heartbeat(caller, message.instance));
    return body_of(wire::DoneT());
}

constexpr std::array kEngineCommands{
    command<wire::HelloT, hello>("Hello", Reach::Engine),
    command<wire::RegisterRegionT, register_region>("RegisterRegion", Reach::Engine),
    command<wire::UnregisterRegionT, unregister_region>("UnregisterRegion", Reach::Engine),
    command<wire::RegisterEventsT, register_events>("RegisterEvents", Reach::Engine),
    command<wire::OpenSessionT, open_session>("OpenSession", Reach::Engine),
    command<wire::BindBuffersT, bind_buffers>("BindBuffers", Reach::Engine),
    command<wire::LayerReadyT, layer_ready>("LayerReady", Reach::Engine),
    command<wire::AdoptedT, adopted>("Adopted", Reach::Engine),
    command<wire::CloseSessionT, close_session>("CloseSession", Reach::Engine),
    command<wire::GoodbyeT, goodbye>("Goodbye", Reach::Engine),
    command<wire::HeartbeatT, heartbeat>("Heartbeat", Reach::Engine),
};

}  // namespace

std::span<Command const> engine_commands() noexcept {
    return kEngineCommands;
}

}  // namespace dkv::rpc
