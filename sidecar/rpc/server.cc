#include "sidecar/rpc/server.h"

#include <spdlog/spdlog.h>

#include "protocol/base/printable.h"
#include "protocol/base/version.h"
#include "protocol/base/without_throwing.h"
#include "sidecar/metrics/log_scope.h"
#include "sidecar/rpc/convert.h"

namespace dkv::rpc {
namespace {

Command const* find_command(wire::Body body) noexcept {
    for (auto const table : {engine_commands(), controller_commands()})
        for (auto const& command : table)
            if (command.body == body) return &command;
    return nullptr;
}

/// Why a message has no command.
Error not_taken(wire::Body body) {
    switch (body) {
        case wire::Body::NONE: return {ErrorCode::InvalidArgument, "the message has no body"};
        case wire::Body::CompactFile:
        case wire::Body::GetFileJob:
            return {ErrorCode::Unsupported,
                    fmt::format("{} was removed: use dkv compact, which needs no sidecar",
                                wire::EnumNameBody(body))};
        default:
            return {ErrorCode::InvalidArgument, fmt::format("a sidecar takes no message of type {}",
                                                            static_cast<unsigned>(body))};
    }
}

/// Who may ask this at all. An engine's requests move memory: the kernel has to say whose.
Result<void> admit(Sender const& sender, Command const& command) {
    auto const denied = [](std::string why) {
        return Error{ErrorCode::PermissionDenied, std::move(why)};
    };
    if (sender.process && is_trusted(sender.process->uid)) return {};
    if (sender.process)
        return denied(fmt::format("user {} is not the user of this sidecar", sender.process->uid));
    switch (command.reach) {
        case Reach::Engine:
            return denied(fmt::format(
                "{} comes from an engine, and engines attach over ipc:// alone", command.name));
        case Reach::Controller:
            if (!sender.key.empty()) return {};
            return denied(
                fmt::format("{} over tcp:// takes a key: dkvd --control listens for "
                            "controllers with keys (dkv keys)",
                            command.name));
        case Reach::Anyone: return {};
    }
    return {};
}

/// For those of whom nothing is known: that a sidecar is here, and which.
Reply short_status() {
    wire::StatusInfoT info;
    info.version = kVersion;
    info.protocol = kProtocolVersion;
    return body_of(std::move(info));
}

}  // namespace

Server::Server(Options options,
               Metrics& metrics,
               Outbox& outbox,
               Backends backends,
               std::function<void()> wake)
    : options_(std::move(options)),
      metrics_(metrics),
      outbox_(outbox),
      subscribers_(options_.config.limits.subscribers_max),
      table_(options_.config, metrics, *this, std::move(backends), std::move(wake)) {}

void Server::on_message(Peer const& peer,
                        std::span<std::byte const> bytes,
                        Millis now,
                        Sender const& sender) {
    now_ = now;
    std::uint64_t id = 0;
    auto const answered = without_throwing([&]() -> Result<void> {
        auto request = decode(bytes, &id);
        if (!request) {
            fail("undecodable", 0, request.error());
            return request.error();
        }
        auto reply = answer({peer, now, id, sender.process}, sender, *request.value());
        if (!reply) return reply.error();
        if (reply.value().type != wire::Body::NONE) send(peer, id, std::move(reply).value());
        return {};
    });
    if (!answered) send(peer, id, body_of(to_wire(answered.error())));
}

Reply Server::answer(Caller const& caller, Sender const& sender, wire::EnvelopeT const& request) {
    auto const* const command = find_command(request.body.type);
    if (command == nullptr) {
        auto const error = not_taken(request.body.type);
        fail("unknown", 0, error);
        return error;
    }
    if (auto const admitted = admit(sender, *command); !admitted) {
        fail(command->name, 0, admitted.error());
        return admitted.error();
    }
    if (sender.is_anyone()) {
        metrics_.request(command->name, "ok");
        return short_status();
    }
    // The verifier lets a union pass that names a type and holds nothing.
    if (request.body.value == nullptr) {
        Error const error{ErrorCode::CorruptData,
                          std::string("the message ") + command->name + " holds nothing"};
        fail(command->name, 0, error);
        return error;
    }
    Context context{.config = options_.config,
                    .endpoint = options_.endpoint,
                    .fd_socket = fd_socket_,
                    .boot_id = options_.boot_id,
                    .started_at = options_.started_at,
                    .table = table_,
                    .subscribers = subscribers_,
                    .stopping = stopping_};
    if (request.body.type == wire::Body::Subscribe && subscribers_.full()) forget_departed();
    auto reply = without_throwing([&] { return command->run(context, caller, request.body); });
    if (reply && reply.value().type == wire::Body::NONE) return reply;
    if (reply)
        metrics_.request(command->name, "ok");
    else
        fail(command->name, command->reach == Reach::Engine ? command->instance(request.body) : 0,
             reply.error());
    return reply;
}

void Server::fail(char const* name, std::uint64_t instance, Error const& error) {
    metrics_.request(name, name_of(error.code));
    // An engine that outlived a sidecar finds out this way: part of the protocol, not a fault.
    if (error.code == ErrorCode::UnknownInstance) return;
    auto const text = printable(error.message, kErrorTextBytesMax);
    LogScope const scope(instance);
    table_.count_error(instance, {error.code, text});
    log_.say(spdlog::level::warn, fmt::format("{} refused: {}", name, name_of(error.code)), now_,
             fmt::format("{} refused: {}", name, text));
}

void Server::send(Peer const& peer, std::uint64_t id, wire::BodyUnion body) {
    wire::EnvelopeT envelope;
    envelope.id = id;
    envelope.boot_id = options_.boot_id;
    envelope.body = std::move(body);
    auto const sent = outbox_.send(peer, encode(envelope));
    if (sent == Outbox::Sent::Full) metrics_.message_lost("full");
    if (sent == Outbox::Sent::Gone) metrics_.message_lost("gone");
}

void Server::on_wake(Millis now) {
    now_ = now;
    table_.finish_work(now);
}

void Server::on_tick(Millis now) {
    now_ = now;
    table_.tick(now);
    log_.tick(now);
}

void Server::reconfigure(Config const& config) {
    auto const limits = options_.config.limits;  // Divided by what the system has.
    options_.config = config;
    options_.config.limits = limits;
    table_.reconfigure(options_.config);
}

void Server::say_stopping(Millis now) {
    now_ = now;
    notice({NoticeKind::Stopping, 0, 0, "the sidecar stops", std::nullopt});
}

void Server::layer_progress(Peer const& engine,
                            std::uint64_t session,
                            LayerProgress const& progress) {
    wire::LayerProgressT event;
    event.session = session;
    event.layer = progress.layer;
    event.stage = static_cast<wire::LayerStage>(progress.stage);
    event.lengths = progress.lengths;
    event.destination_offset = progress.destination_offset;
    send(engine, 0, body_of(std::move(event)));
}

void Server::planned(Peer const& engine,
                     std::uint64_t session,
                     std::vector<std::uint32_t> const& lengths) {
    wire::PlannedT event;
    event.session = session;
    event.lengths = lengths;
    send(engine, 0, body_of(std::move(event)));
}

void Server::committed(Peer const& engine,
                       std::uint64_t session,
                       JobOutcome const& outcome,
                       SpentTime spent) {
    wire::CommittedT event;
    event.session = session;
    event.lengths = outcome.lengths;
    event.mass_kept = outcome.mass_kept;
    event.bytes_full = outcome.bytes_full;
    event.bytes_kept = outcome.bytes_kept;
    event.bytes_block_table = outcome.bytes_block_table;
    event.busy_ns = spent.busy;
    event.wait_ns = spent.waiting;
    send(engine, 0, body_of(std::move(event)));
}

void Server::region_registered(Asker const& asker, Result<std::uint64_t> const& region) {
    if (!region) return answer_later(asker, region.error());
    wire::RegionRegisteredT registered;
    registered.region = region.value();
    answer_later(asker, body_of(std::move(registered)));
}

void Server::done(Asker const& asker, Result<void> const& result) {
    if (!result) return answer_later(asker, result.error());
    answer_later(asker, body_of(wire::DoneT()));
}

void Server::answer_later(Asker const& asker, Reply reply) {
    if (reply)
        metrics_.request(asker.name, "ok");
    else
        fail(asker.name, asker.instance, reply.error());
    send(asker.peer, asker.request,
         reply ? std::move(reply).value() : body_of(to_wire(reply.error())));
}

void Server::session_failed(Peer const& engine, std::uint64_t session, Error const& error) {
    wire::SessionFailedT event;
    event.session = session;
    event.failure = std::make_unique<wire::FailureT>(to_wire(error));
    send(engine, 0, body_of(std::move(event)));
}

/// A watcher that left says nothing: only sending tells. A message without a body and without an id
/// means nothing to those that are there.
void Server::forget_departed() {
    wire::EnvelopeT empty;
    empty.boot_id = options_.boot_id;
    auto const bytes = encode(empty);
    for (auto const& peer : std::vector<Peer>(subscribers_.peers()))
        if (outbox_.send(peer, bytes) == Outbox::Sent::Gone) subscribers_.remove(peer);
}

void Server::notice(Notice const& notice) {
    if (subscribers_.peers().empty()) return;
    wire::NoticeT message;
    message.kind = name_of(notice.kind);
    message.at_ms = now_ + options_.wall_offset_ms;
    message.instance = notice.instance;
    message.session = notice.session;
    message.text = notice.text;
    if (notice.detail) message.detail = to_wire(*notice.detail);
    wire::EnvelopeT envelope;
    envelope.boot_id = options_.boot_id;
    envelope.body = body_of(std::move(message));
    auto const bytes = encode(envelope);
    // A copy: those that went away are taken off while the others are told.
    for (auto const& peer : std::vector<Peer>(subscribers_.peers())) {
        auto const sent = outbox_.send(peer, bytes);
        if (sent == Outbox::Sent::Full) metrics_.message_lost("full");
        if (sent == Outbox::Sent::Gone) subscribers_.remove(peer);
    }
}

}  // namespace dkv::rpc
