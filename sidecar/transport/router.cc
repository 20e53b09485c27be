#include "sidecar/transport/router.h"

#include <array>
#include <cerrno>
#include <charconv>
#include <string_view>

#include <spdlog/spdlog.h>

#include "protocol/base/endpoint.h"
#include "sidecar/transport/connection_gate.h"
#include "sidecar/transport/zap.h"

namespace dkv {
namespace {

/// How long the last replies may take to leave when the sidecar stops.
constexpr int kLingerMs = 500;
/// A connection over TCP that has not proved its key by then is closed: it holds a place.
constexpr int kHandshakeMs = 5'000;
constexpr std::size_t kPeersMax = 16'384;
/// Of a frame of ZMTP: flags, and a length in a byte or in eight.
constexpr std::size_t kShortHeader = 2;
constexpr std::size_t kLongHeader = 9;
/// What CURVE adds to a frame: a name of 8 bytes, a nonce of 8, a code of 16, flags.
constexpr std::size_t kCurveBytes = 33;

}  // namespace

Result<std::unique_ptr<Router>> Router::listen(zmq::context_t& context, Options options) {
    DKV_TRY(check_endpoint(options.endpoint));
    auto place = DKV_TRY(SocketPlace::take(options.endpoint));
    std::unique_ptr<Router> router(new Router(context, std::move(options), std::move(place)));
    router->configure();
    DKV_TRY(router->bind());
    return router;
}

void Router::configure() {
    socket_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(options_.message_bytes_max));
    socket_.set(zmq::sockopt::router_mandatory, true);
    socket_.set(zmq::sockopt::sndhwm, options_.messages_queued_max);
    socket_.set(zmq::sockopt::linger, kLingerMs);
    socket_.set(zmq::sockopt::handshake_ivl, kHandshakeMs);
    // Only where it is asked for: with it, "localhost" would be ::1 alone.
    if (options_.endpoint.starts_with("tcp://[")) socket_.set(zmq::sockopt::ipv6, true);
    if (options_.secret_key.empty()) return;
    socket_.set(zmq::sockopt::curve_server, true);
    socket_.set(zmq::sockopt::curve_secretkey, options_.secret_key);
    socket_.set(zmq::sockopt::zap_domain, kZapDomain);
}

Result<void> Router::bind() {
    try {
        OwnerOnly const closed_to_others;
        socket_.bind(options_.endpoint);
    } catch (zmq::error_t const& error) {
        if (error.num() == EADDRINUSE)
            return Error{ErrorCode::AlreadyExists,
                         "a sidecar already listens at " + options_.endpoint};
        return Error{ErrorCode::Io,
                     "cannot listen at " + options_.endpoint + ": " + std::string(error.what())};
    }
    endpoint_ = socket_.get(zmq::sockopt::last_endpoint);
    return place_->bound();
}

Result<void> Router::stay_reachable() {
    if (place_->is_there()) return {};
    spdlog::warn("the socket of {} was removed: listening again", endpoint_);
    try {
        socket_.unbind(endpoint_);
    } catch (zmq::error_t const&) {  // libzmq minds that its file is not there.
    }
    place_.reset();
    place_.emplace(DKV_TRY(SocketPlace::take(options_.endpoint)));
    return bind();
}

bool Router::receive(Handle const& handle) {
    zmq::message_t peer;
    if (!socket_.recv(peer, zmq::recv_flags::dontwait)) return false;
    zmq::message_t body;
    int frames = 0;
    int connection = -1;
    std::size_t received = 0;
    while (socket_.get(zmq::sockopt::rcvmore)) {
        // A peer that sends anything but one frame gets the answer to an empty message.
        zmq::message_t frame;
        [[maybe_unused]] auto const size = socket_.recv(frame);
        if (frames == 0) connection = zmq_msg_get(frame.handle(), ZMQ_SRCFD);
        received += bytes_on_wire(frame.size());
        if (++frames == 1) body = std::move(frame);
    }
    auto const* const data = static_cast<std::byte const*>(body.data());
    std::size_t const bytes = frames == 1 ? body.size() : 0;
    auto const from = options_.mark + peer.to_string();
    if (connections_.size() >= kPeersMax) connections_.clear();  // Each is learnt anew.
    connections_[from] = connection;
    handle(from, {data, bytes}, sender_of(body));
    note_handled(connection, received);
    return true;
}

std::size_t Router::bytes_on_wire(std::size_t frame) const noexcept {
    auto const bytes = frame + (options_.secret_key.empty() ? 0 : kCurveBytes);
    return bytes + (bytes > 255 ? kLongHeader : kShortHeader);
}

Sender Router::sender_of(zmq::message_t& message) const {
    if (!options_.secret_key.empty()) {
        char const* const name = zmq_msg_gets(message.handle(), "User-Id");  // What Zap answered.
        return {.key = name == nullptr ? "" : name};
    }
    if (ipc_path(endpoint_).empty()) return {};
    // Of a Unix socket libzmq keeps what SO_PEERCRED said when it accepted: "HOST:UID:GID:PID".
    char const* const address = zmq_msg_gets(message.handle(), "Peer-Address");
    if (address == nullptr) return {};
    std::string_view rest(address);
    std::array<long long, 3> numbers{};
    for (auto number = numbers.rbegin(); number != numbers.rend(); ++number) {
        auto const colon = rest.rfind(':');
        if (colon == std::string_view::npos) return {};
        auto const digits = rest.substr(colon + 1);
        auto const [end, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), *number);
        if (error != std::errc{} || end != digits.data() + digits.size()) return {};
        rest = rest.substr(0, colon);
    }
    return {.process =
                PeerCredentials{static_cast<uid_t>(numbers[0]), static_cast<pid_t>(numbers[2])}};
}

SendResult Router::send(PeerId const& peer, std::span<std::uint8_t const> bytes) {
    auto const known = connections_.find(peer);
    if (known != connections_.end() && !take_room(known->second, bytes_on_wire(bytes.size())))
        return SendResult::Full;
    // One message of two frames: from the first frame on the second always has room.
    auto const identity =
        std::span(reinterpret_cast<std::uint8_t const*>(peer.data()), peer.size()).subspan(1);
    for (auto const frame : {identity, bytes}) {
        int const flags = ZMQ_DONTWAIT | (frame.data() == bytes.data() ? 0 : ZMQ_SNDMORE);
        while (zmq_send(socket_.handle(), frame.data(), frame.size(), flags) < 0) {
            if (zmq_errno() == EINTR) continue;
            // No peer has the identity, or the process is shutting down.
            if (zmq_errno() == EAGAIN) return SendResult::Full;
            connections_.erase(peer);
            return SendResult::Gone;
        }
    }
    return SendResult::Sent;
}

}  // namespace dkv
