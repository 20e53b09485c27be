#include "protocol/sdk/link.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unistd.h>

#include "protocol/base/endpoint.h"
#include "protocol/base/peer.h"
#include "protocol/schema/envelope.h"

namespace dkv::sdk {
namespace {

constexpr int kSendQueueMax = 4096;
// The sidecar drops what does not fit: room for every layer of many sessions at once.
constexpr int kReceiveQueueMax = 100'000;
constexpr int kReconnectMs = 50;
constexpr int kReconnectMaxMs = 500;
constexpr int kEvents = ZMQ_EVENT_CONNECTED | ZMQ_EVENT_CONNECT_RETRIED | ZMQ_EVENT_DISCONNECTED |
                        ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                        ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;

/// A signal also ends calls that do not wait, with EINTR.
template <class Call>
auto uninterrupted(Call const& call) {
    while (true) {
        try {
            return call();
        } catch (zmq::error_t const& error) {
            if (error.num() != EINTR) throw;
        }
    }
}

bool next_of(zmq::socket_t& socket, zmq::message_t& message) {
    return uninterrupted(
        [&] { return socket.recv(message, zmq::recv_flags::dontwait).has_value(); });
}

void configure(zmq::socket_t& socket) {
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::immediate, true);
    socket.set(zmq::sockopt::sndhwm, kSendQueueMax);
    socket.set(zmq::sockopt::rcvhwm, kReceiveQueueMax);
    socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kMessageBytesMax));
    socket.set(zmq::sockopt::reconnect_ivl, kReconnectMs);
    socket.set(zmq::sockopt::reconnect_ivl_max, kReconnectMaxMs);
}

}  // namespace

Result<std::unique_ptr<Link>> Link::open(zmq::context_t& context,
                                         std::string const& endpoint,
                                         std::optional<LinkKeys> keys) {
    if (endpoint.starts_with("inproc://"))
        return Error{ErrorCode::Unsupported,
                     "endpoint '" + endpoint + "' reaches nobody outside its own ZeroMQ context"};
    if (endpoint.starts_with("tcp://") && !keys)
        return Error{ErrorCode::Unsupported, "endpoint '" + endpoint +
                                                 "' can be another machine: engines attach over "
                                                 "ipc:// alone, where memory can be lent"};
    DKV_TRY(check_socket_place(endpoint));
    try {
        zmq::socket_t socket(context, zmq::socket_type::dealer);
        configure(socket);
        if (keys) {
            // Only where it is asked for: with it, "localhost" would be ::1 alone.
            if (endpoint.starts_with("tcp://[")) socket.set(zmq::sockopt::ipv6, true);
            socket.set(zmq::sockopt::curve_serverkey, keys->sidecar);
            socket.set(zmq::sockopt::curve_publickey, keys->own.public_key);
            socket.set(zmq::sockopt::curve_secretkey, keys->own.secret_key);
        }
        zmq::socket_t monitor(context, zmq::socket_type::pair);
        monitor.set(zmq::sockopt::linger, 0);
        auto const address = "inproc://dkv-link-" + hex(random_id());
        uninterrupted([&] {
            if (zmq_socket_monitor(socket.handle(), address.c_str(), kEvents) != 0)
                throw zmq::error_t();
        });
        uninterrupted([&] { monitor.connect(address); });
        uninterrupted([&] { socket.connect(endpoint); });
        return std::unique_ptr<Link>(
            new Link(std::move(socket), std::move(monitor), endpoint, std::move(keys)));
    } catch (zmq::error_t const& error) {
        return Error{ErrorCode::Io, "no socket to '" + endpoint + "': " + error.what()};
    }
}

Link::~Link() {
    // Ends the reports first: ZeroMQ leaks the memory of one that finds no listener.
    zmq_socket_monitor(socket_.handle(), nullptr, 0);
}

Result<void> Link::send(std::span<std::uint8_t const> bytes) {
    // Asking for events makes ZeroMQ look at its mailbox, where a new connection may be waiting; a
    // bare send does so only now and then.
    bool const sent = uninterrupted([&] {
        bool const ready = up_ && (socket_.get(zmq::sockopt::events) & ZMQ_POLLOUT) != 0;
        return ready &&
               socket_.send(zmq::buffer(bytes.data(), bytes.size()), zmq::send_flags::dontwait);
    });
    if (sent) return {};
    return Error{ErrorCode::Unavailable, "the sidecar takes no requests now"};
}

LinkNews Link::wait(Clock::duration timeout, int wake_fd) {
    zmq_pollitem_t items[] = {{socket_.handle(), 0, ZMQ_POLLIN, 0},
                              {monitor_.handle(), 0, ZMQ_POLLIN, 0},
                              {nullptr, wake_fd, ZMQ_POLLIN, 0}};
    auto const wait_ms = std::chrono::ceil<milliseconds>(timeout).count();
    LinkNews news;
    // Interrupted by a signal: nothing happened, the caller looks at its clock and comes again.
    if (zmq_poll(items, wake_fd < 0 ? 2 : 3, std::max<long>(0, wait_ms)) < 0) return news;
    // The monitor first: what it announces after this belongs to the next call, so that no message
    // can come before the news that its connection is up.
    drain_monitor(news);
    zmq::message_t message;
    while (next_of(socket_, message))
        news.messages.push_back(std::move(message));
    return news;
}

/// A Unix socket is listened at by this user or by root, or it is refused: as the kernel says of
/// the connection.
std::optional<Error> Link::foreign_peer(int connection) const {
    auto const path = ipc_path(endpoint_);
    if (path.empty()) return std::nullopt;
    auto const peer = peer_of(connection);
    if (peer && is_trusted(peer->uid)) return std::nullopt;
    auto const whose =
        peer ? "user " + std::to_string(peer->uid) : std::string("a process unknown");
    return Error{ErrorCode::PermissionDenied,
                 "the sidecar at " + path + " is run by " + whose + ", not by this user (" +
                     std::to_string(::geteuid()) + "): nothing was sent to it"};
}

/// What a handshake that failed says of the keys. A sidecar with another key just hangs up, and so
/// may one that takes none.
std::optional<Error> Link::refused_keys(std::uint16_t event, std::int32_t value) const {
    if (!keys_ || !connected_ || up_) return std::nullopt;
    auto const refused = [&](std::string const& why) {
        return Error{ErrorCode::PermissionDenied, "the sidecar at " + endpoint_ + " " + why};
    };
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
        return refused("does not let this key in (" + keys_->own.public_key +
                       "): its operator copies your dkv.key to its clients folder, as NAME.key");
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL &&
        value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
        return refused("takes no keys: controllers connect where dkvd --control listens");
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL ||
        event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL || event == ZMQ_EVENT_DISCONNECTED)
        return refused("ended the handshake: its key is not the one in '" +
                       keys_->sidecar_file.string() +
                       "', it takes no keys, or it has as many connections as it takes");
    return std::nullopt;
}

void Link::drain_monitor(LinkNews& news) {
    zmq::message_t event;
    while (next_of(monitor_, event)) {
        std::uint16_t number = 0;
        std::int32_t value = -1;
        if (event.size() >= sizeof number + sizeof value) {
            std::memcpy(&number, event.data(), sizeof number);
            std::memcpy(&value, static_cast<char const*>(event.data()) + sizeof number,
                        sizeof value);
        }
        if (event.more()) static_cast<void>(next_of(monitor_, event));  // The address, of no use.
        switch (number) {
            case ZMQ_EVENT_CONNECTED:
                connected_ = true;
                foreign_ = foreign_peer(value);
                break;
            case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
                // Nothing has been sent yet, and to a foreigner nothing will be.
                if (foreign_)
                    news.foreign = foreign_;
                else
                    up_ = news.up = true;
                break;
            case ZMQ_EVENT_CONNECT_RETRIED: news.refused = !up_; break;
            default:  // Lost, or the peer does not speak ZeroMQ.
                if (auto refused = refused_keys(number, value)) news.foreign = std::move(refused);
                news.down = news.down || up_;
                news.refused = news.refused || !up_;
                up_ = connected_ = false;
                break;
        }
    }
}

}  // namespace dkv::sdk
