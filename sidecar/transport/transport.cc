#include "sidecar/transport/transport.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <unistd.h>
#include <vector>

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <zmq.hpp>

#include "protocol/base/endpoint.h"
#include "protocol/base/unique_fd.h"
#include "sidecar/transport/socket_place.h"

namespace dkv {
namespace {

/// Messages taken in a row before workers and the clock are looked at again.
constexpr int kMessagesPerTurn = 256;
/// How long the last replies may take to leave when the sidecar stops.
constexpr int kLingerMs = 500;

class ZmqTransport final : public Transport {
public:
    ZmqTransport(Options const& options, SocketPlace place)
        : options_(options),
          endpoint_(options.endpoint),
          place_(std::move(place)),
          socket_(context_, zmq::socket_type::router),
          event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

    Result<void> bind();

    std::string const& endpoint() const noexcept override { return endpoint_; }
    Result<void> run(TransportHandler& handler, int watched_fd) override;
    SendResult send(PeerId const& peer, std::span<std::uint8_t const> bytes) override;
    bool sender_is_this_process() const noexcept override;
    void wake() noexcept override {
        // A full counter means that the loop is awake already.
        [[maybe_unused]] auto const written = ::eventfd_write(event_.get(), 1);
    }
    void stop() noexcept override {
        stopping_ = true;
        wake();
    }

private:
    void receive_all(TransportHandler& handler);

    Options options_;
    std::string endpoint_;
    SocketPlace place_;  // Before the socket: its file is removed after the socket was closed.
    zmq::context_t context_;
    zmq::socket_t socket_;
    UniqueFd event_;
    int sender_ = -1;  ///< The connection of the message that is being handled.
    std::atomic<bool> stopping_ = false;
};

Result<void> ZmqTransport::bind() {
    if (!event_) return Error{ErrorCode::Io, "cannot make an eventfd"};
    socket_.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(options_.message_bytes_max));
    socket_.set(zmq::sockopt::router_mandatory, true);
    socket_.set(zmq::sockopt::sndhwm, options_.messages_queued_max);
    socket_.set(zmq::sockopt::linger, kLingerMs);
    try {
        socket_.bind(options_.endpoint);
    } catch (zmq::error_t const& error) {
        if (error.num() == EADDRINUSE)
            return Error{ErrorCode::AlreadyExists,
                         "a sidecar already listens at " + options_.endpoint};
        return Error{ErrorCode::Io,
                     "cannot listen at " + options_.endpoint + ": " + std::string(error.what())};
    }
    endpoint_ = socket_.get(zmq::sockopt::last_endpoint);
    return place_.protect();
}

Result<void> ZmqTransport::run(TransportHandler& handler, int watched_fd) {
    std::uint64_t next_tick = steady_ms() + options_.tick_ms;
    while (!stopping_) {
        std::array<zmq::pollitem_t, 3> items{{{socket_.handle(), 0, ZMQ_POLLIN, 0},
                                              {nullptr, event_.get(), ZMQ_POLLIN, 0},
                                              {nullptr, watched_fd, ZMQ_POLLIN, 0}}};
        auto const now = steady_ms();
        auto const wait = std::chrono::milliseconds(next_tick > now ? next_tick - now : 0);
        try {
            zmq::poll(items.data(), watched_fd >= 0 ? 3 : 2, wait);
            if ((items[0].revents & ZMQ_POLLIN) != 0) receive_all(handler);
        } catch (zmq::error_t const& error) {
            if (error.num() == EINTR) continue;
            return Error{ErrorCode::Io, "cannot receive messages: " + std::string(error.what())};
        }
        if (items[1].revents != 0 || items[2].revents != 0) {
            eventfd_t count = 0;
            [[maybe_unused]] auto const read = ::eventfd_read(event_.get(), &count);
            handler.on_wake(steady_ms());
        }
        if (auto const after = steady_ms(); after >= next_tick) {
            handler.on_tick(after);
            next_tick = after + options_.tick_ms;
        }
    }
    return {};
}

void ZmqTransport::receive_all(TransportHandler& handler) {
    for (int turn = 0; turn < kMessagesPerTurn && !stopping_; ++turn) {
        zmq::message_t peer;
        if (!socket_.recv(peer, zmq::recv_flags::dontwait)) return;
        zmq::message_t body;
        int frames = 0;
        while (socket_.get(zmq::sockopt::rcvmore)) {
            // A peer that sends anything but one frame gets the answer to an empty message.
            zmq::message_t frame;
            [[maybe_unused]] auto const size = socket_.recv(frame);
            if (++frames == 1) body = std::move(frame);
        }
        auto const* const data = static_cast<std::byte const*>(body.data());
        std::size_t const bytes = frames == 1 ? body.size() : 0;
        sender_ = body.size() == 0 ? -1 : zmq_msg_get(body.handle(), ZMQ_SRCFD);
        handler.on_message(peer.to_string(), {data, bytes}, steady_ms());
        sender_ = -1;
    }
}

bool ZmqTransport::sender_is_this_process() const noexcept {
    ucred peer{};
    socklen_t size = sizeof peer;
    return sender_ >= 0 && ipc_path(endpoint_) != "" &&
           ::getsockopt(sender_, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
           peer.pid == ::getpid();
}

SendResult ZmqTransport::send(PeerId const& peer, std::span<std::uint8_t const> bytes) {
    // One message of two frames: from the first frame on the second always has room.
    for (std::span<std::uint8_t const> const frame :
         {std::span(reinterpret_cast<std::uint8_t const*>(peer.data()), peer.size()), bytes}) {
        int const flags = ZMQ_DONTWAIT | (frame.data() == bytes.data() ? 0 : ZMQ_SNDMORE);
        while (zmq_send(socket_.handle(), frame.data(), frame.size(), flags) < 0) {
            if (zmq_errno() == EINTR) continue;
            // Nobody has the identity, or the process is shutting down.
            return zmq_errno() == EAGAIN ? SendResult::Full : SendResult::Gone;
        }
    }
    return SendResult::Sent;
}

}  // namespace

Result<std::unique_ptr<Transport>> Transport::listen(Options const& options) {
    DKV_TRY(check_endpoint(options.endpoint));
    auto place = DKV_TRY(SocketPlace::take(options.endpoint));
    auto transport = std::make_unique<ZmqTransport>(options, std::move(place));
    DKV_TRY(transport->bind());
    return std::unique_ptr<Transport>(std::move(transport));
}

std::uint64_t steady_ms() noexcept {
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(
                                          std::chrono::steady_clock::now().time_since_epoch())
                                          .count());
}

}  // namespace dkv
