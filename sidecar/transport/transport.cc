#include "sidecar/transport/transport.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <string_view>
#include <unistd.h>
#include <unordered_map>
#include <vector>

#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <system_error>
#include <zmq.hpp>

#include "protocol/base/endpoint.h"
#include "protocol/base/unique_fd.h"
#include "sidecar/transport/connection_gate.h"
#include "sidecar/transport/socket_place.h"

namespace dkv {
namespace {

/// Messages taken in a row before workers and the clock are looked at again.
constexpr int kMessagesPerTurn = 256;
/// Turns in a row that may put the clock off.
constexpr int kTurnsBehindMax = 64;
/// How long the last replies may take to leave when the sidecar stops.
constexpr int kLingerMs = 500;
constexpr std::size_t kPeersMax = 16'384;
/// Of a frame of ZMTP: flags, and a length in a byte or in eight.
constexpr std::size_t kShortHeader = 2;
constexpr std::size_t kLongHeader = 9;

class ZmqTransport final : public Transport {
public:
    ZmqTransport(Options const& options, SocketPlace place)
        : options_(options),
          endpoint_(options.endpoint),
          place_(std::move(place)),
          socket_(context_, zmq::socket_type::router),
          event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

    Result<void> open();
    Result<void> bind();
    Result<void> listen_again();

    std::string const& endpoint() const noexcept override { return endpoint_; }
    Result<void> run(TransportHandler& handler, int watched_fd) override;
    SendResult send(PeerId const& peer, std::span<std::uint8_t const> bytes) override;
    std::optional<PeerCredentials> sender() const noexcept override { return sender_; }
    void wake() noexcept override {
        // A full counter means that the loop is awake already.
        [[maybe_unused]] auto const written = ::eventfd_write(event_.get(), 1);
    }
    void stop() noexcept override {
        stopping_ = true;
        wake();
    }

private:
    /// Whether nothing is left for the moment.
    bool receive_all(TransportHandler& handler);
    std::optional<PeerCredentials> sender_of(zmq::message_t& message) const;

    Options options_;
    std::string endpoint_;
    std::optional<SocketPlace>
        place_;  // Before the socket: its file is removed after the socket was closed.
    zmq::context_t context_;
    zmq::socket_t socket_;
    UniqueFd event_;
    std::unordered_map<PeerId, int> connections_;  ///< Over which peers sent last.
    std::optional<PeerCredentials> sender_;        ///< Of the message that is being handled.
    std::atomic<bool> stopping_ = false;
};

Result<void> ZmqTransport::open() {
    if (!event_) return Error{ErrorCode::Io, "cannot make an eventfd"};
    socket_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(options_.message_bytes_max));
    socket_.set(zmq::sockopt::router_mandatory, true);
    socket_.set(zmq::sockopt::sndhwm, options_.messages_queued_max);
    socket_.set(zmq::sockopt::linger, kLingerMs);
    return bind();
}

Result<void> ZmqTransport::bind() {
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

/// The socket, or its folder, was removed: what is connected stays, but nothing new comes.
Result<void> ZmqTransport::listen_again() {
    spdlog::warn("the socket of {} was removed: listening again", endpoint_);
    try {
        socket_.unbind(endpoint_);
    } catch (zmq::error_t const&) {  // libzmq minds that its file is not there.
    }
    place_.reset();
    place_.emplace(DKV_TRY(SocketPlace::take(options_.endpoint)));
    return bind();
}

Result<void> ZmqTransport::run(TransportHandler& handler, int watched_fd) {
    std::uint64_t next_tick = steady_ms() + options_.tick_ms;
    int turns_behind = 0;
    while (!stopping_) {
        std::array<zmq::pollitem_t, 3> items{{{socket_.handle(), 0, ZMQ_POLLIN, 0},
                                              {nullptr, event_.get(), ZMQ_POLLIN, 0},
                                              {nullptr, watched_fd, ZMQ_POLLIN, 0}}};
        auto const now = steady_ms();
        auto const wait = std::chrono::milliseconds(next_tick > now ? next_tick - now : 0);
        bool all_heard = true;
        try {
            zmq::poll(items.data(), watched_fd >= 0 ? 3 : 2, wait);
            if ((items[0].revents & ZMQ_POLLIN) != 0) all_heard = receive_all(handler);
        } catch (zmq::error_t const& error) {
            if (error.num() == EINTR) continue;
            return Error{ErrorCode::Io, "cannot receive messages: " + std::string(error.what())};
        }
        if (items[1].revents != 0 || items[2].revents != 0) {
            eventfd_t count = 0;
            [[maybe_unused]] auto const read = ::eventfd_read(event_.get(), &count);
            handler.on_wake(steady_ms());
        }
        // Where this process was stopped for a while, the heartbeats that came meanwhile go first.
        if (!all_heard && ++turns_behind <= kTurnsBehindMax) continue;
        turns_behind = 0;
        if (auto const after = steady_ms(); after >= next_tick) {
            if (!place_->is_there()) DKV_TRY(listen_again());
            handler.on_tick(after);
            next_tick = after + options_.tick_ms;
        }
    }
    return {};
}

bool ZmqTransport::receive_all(TransportHandler& handler) {
    for (int turn = 0; turn < kMessagesPerTurn && !stopping_; ++turn) {
        zmq::message_t peer;
        if (!socket_.recv(peer, zmq::recv_flags::dontwait)) return true;
        zmq::message_t body;
        int frames = 0;
        int connection = -1;
        std::size_t received = 0;
        while (socket_.get(zmq::sockopt::rcvmore)) {
            // A peer that sends anything but one frame gets the answer to an empty message.
            zmq::message_t frame;
            [[maybe_unused]] auto const size = socket_.recv(frame);
            if (frames == 0) connection = zmq_msg_get(frame.handle(), ZMQ_SRCFD);
            received += frame.size() + (frame.size() > 255 ? kLongHeader : kShortHeader);
            if (++frames == 1) body = std::move(frame);
        }
        auto const* const data = static_cast<std::byte const*>(body.data());
        std::size_t const bytes = frames == 1 ? body.size() : 0;
        sender_ = sender_of(body);
        auto const from = peer.to_string();
        if (connections_.size() >= kPeersMax) connections_.clear();  // Each is learnt anew.
        connections_[from] = connection;
        handler.on_message(from, {data, bytes}, steady_ms());
        sender_.reset();
        note_handled(connection, received);
    }
    return false;
}

std::optional<PeerCredentials> ZmqTransport::sender_of(zmq::message_t& message) const {
    if (ipc_path(endpoint_).empty()) return std::nullopt;
    // Of a Unix socket libzmq keeps what SO_PEERCRED said when it accepted: "HOST:UID:GID:PID".
    char const* const address = zmq_msg_gets(message.handle(), "Peer-Address");
    if (address == nullptr) return std::nullopt;
    std::string_view rest(address);
    std::array<long long, 3> numbers{};
    for (auto number = numbers.rbegin(); number != numbers.rend(); ++number) {
        auto const colon = rest.rfind(':');
        if (colon == std::string_view::npos) return std::nullopt;
        auto const digits = rest.substr(colon + 1);
        auto const [end, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), *number);
        if (error != std::errc{} || end != digits.data() + digits.size()) return std::nullopt;
        rest = rest.substr(0, colon);
    }
    return PeerCredentials{static_cast<uid_t>(numbers[0]), static_cast<pid_t>(numbers[2])};
}

SendResult ZmqTransport::send(PeerId const& peer, std::span<std::uint8_t const> bytes) {
    auto const known = connections_.find(peer);
    if (known != connections_.end() && !take_room(known->second, bytes.size() + kLongHeader))
        return SendResult::Full;
    // One message of two frames: from the first frame on the second always has room.
    for (std::span<std::uint8_t const> const frame :
         {std::span(reinterpret_cast<std::uint8_t const*>(peer.data()), peer.size()), bytes}) {
        int const flags = ZMQ_DONTWAIT | (frame.data() == bytes.data() ? 0 : ZMQ_SNDMORE);
        while (zmq_send(socket_.handle(), frame.data(), frame.size(), flags) < 0) {
            if (zmq_errno() == EINTR) continue;
            // Nobody has the identity, or the process is shutting down.
            if (zmq_errno() == EAGAIN) return SendResult::Full;
            connections_.erase(peer);
            return SendResult::Gone;
        }
    }
    return SendResult::Sent;
}

}  // namespace

Result<std::unique_ptr<Transport>> Transport::listen(Options const& options) {
    DKV_TRY(check_endpoint(options.endpoint));
    auto place = DKV_TRY(SocketPlace::take(options.endpoint));
    auto transport = std::make_unique<ZmqTransport>(options, std::move(place));
    DKV_TRY(transport->open());
    return std::unique_ptr<Transport>(std::move(transport));
}

std::uint64_t steady_ms() noexcept {
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                          std::chrono::steady_clock::now().time_since_epoch())
                                          .count());
}

}  // namespace dkv
