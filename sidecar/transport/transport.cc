#include "sidecar/transport/transport.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <optional>

#include <sys/eventfd.h>
#include <zmq.hpp>

#include "protocol/base/unique_fd.h"
#include "protocol/keys/key_files.h"
#include "sidecar/transport/client_keys.h"
#include "sidecar/transport/router.h"
#include "sidecar/transport/zap.h"

namespace dkv {
namespace {

/// Messages taken in a row before workers and the clock are looked at again.
constexpr int kMessagesPerTurn = 256;
/// Turns in a row that may put the clock off.
constexpr int kTurnsBehindMax = 64;
constexpr char kLocalMark = 'l';
constexpr char kControlMark = 'c';
/// Controllers send little. Who has no key yet can make libzmq keep as much as one message.
constexpr std::size_t kControlBytesMax = 1U << 20U;

/// What serves controllers elsewhere. A context of its own: handshakes, which anyone who reaches
/// the port can ask for, take the time of another thread than the engines' messages.
struct ControlSide {
    zmq::context_t context;
    std::optional<Zap> zap;  // Before the router: without it libzmq lets every key in.
    std::unique_ptr<Router> router;
};

Result<std::unique_ptr<ControlSide>> listen_for_control(Transport::Options const& options) {
    auto const& control = options.control;
    DKV_TRY(keys::require_curve());
    auto const secret_file = control.secret_key_file.empty()
                                 ? DKV_TRY(keys::folder()) / keys::kSecretFile
                                 : std::filesystem::path(control.secret_key_file);
    auto pair = keys::read_pair(secret_file);
    if (!pair && pair.error().code == ErrorCode::NotFound)
        return Error{ErrorCode::NotFound, control.endpoint + " needs a secret key, and '" +
                                              secret_file.string() +
                                              "' is not there: dkv keys makes it"};
    if (!pair) return pair.error();
    auto side = std::make_unique<ControlSide>();
    auto const folder = control.clients_folder.empty()
                            ? secret_file.parent_path() / "clients"
                            : std::filesystem::path(control.clients_folder);
    side->zap.emplace(side->context, DKV_TRY(ClientKeys::open(folder)));
    auto const bytes_max = std::min(options.message_bytes_max, kControlBytesMax);
    side->router =
        DKV_TRY(Router::listen(side->context, {.endpoint = control.endpoint,
                                               .mark = kControlMark,
                                               .message_bytes_max = bytes_max,
                                               .messages_queued_max = options.messages_queued_max,
                                               .secret_key = pair.value().secret_key}));
    return side;
}

class ZmqTransport final : public Transport {
public:
    explicit ZmqTransport(Options options)
        : options_(std::move(options)), event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

    Result<void> open();

    std::string const& endpoint() const noexcept override { return local_->endpoint(); }
    std::string control_endpoint() const override {
        return control_ ? control_->router->endpoint() : "";
    }
    Result<void> run(TransportHandler& handler, int watched_fd) override;
    SendResult send(PeerId const& peer, std::span<std::uint8_t const> bytes) override;
    Sender const& sender() const noexcept override { return sender_; }
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
    bool receive_all(Router& router, TransportHandler& handler);

    Options options_;
    zmq::context_t context_;
    std::unique_ptr<Router> local_;
    std::unique_ptr<ControlSide> control_;
    UniqueFd event_;
    Sender sender_;  ///< Of the message that is being handled.
    std::atomic<bool> stopping_ = false;
};

Result<void> ZmqTransport::open() {
    if (!event_) return Error{ErrorCode::Io, "cannot make an eventfd"};
    local_ =
        DKV_TRY(Router::listen(context_, {.endpoint = options_.endpoint,
                                          .mark = kLocalMark,
                                          .message_bytes_max = options_.message_bytes_max,
                                          .messages_queued_max = options_.messages_queued_max}));
    if (!options_.control.endpoint.empty()) control_ = DKV_TRY(listen_for_control(options_));
    return {};
}

Result<void> ZmqTransport::run(TransportHandler& handler, int watched_fd) {
    std::uint64_t next_tick = steady_ms() + options_.tick_ms;
    int turns_behind = 0;
    while (!stopping_) {
        // What is not there is polled as a descriptor of -1, which never has anything.
        std::array<zmq::pollitem_t, 5> items{{{local_->handle(), 0, ZMQ_POLLIN, 0},
                                              {nullptr, event_.get(), ZMQ_POLLIN, 0},
                                              {nullptr, watched_fd, ZMQ_POLLIN, 0},
                                              {nullptr, -1, ZMQ_POLLIN, 0},
                                              {nullptr, -1, ZMQ_POLLIN, 0}}};
        if (control_) {
            items[3].socket = control_->router->handle();
            items[4].socket = control_->zap->handle();
        }
        auto const now = steady_ms();
        auto const wait = std::chrono::milliseconds(next_tick > now ? next_tick - now : 0);
        bool all_heard = true;
        try {
            zmq::poll(items.data(), items.size(), wait);
            if ((items[0].revents & ZMQ_POLLIN) != 0) all_heard = receive_all(*local_, handler);
            if ((items[4].revents & ZMQ_POLLIN) != 0) control_->zap->answer_all();
            if ((items[3].revents & ZMQ_POLLIN) != 0)
                all_heard = receive_all(*control_->router, handler) && all_heard;
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
            DKV_TRY(local_->stay_reachable());
            handler.on_tick(after);
            next_tick = after + options_.tick_ms;
        }
    }
    return {};
}

bool ZmqTransport::receive_all(Router& router, TransportHandler& handler) {
    auto const handle = [&](PeerId const& peer, std::span<std::byte const> bytes, Sender sender) {
        sender_ = std::move(sender);
        handler.on_message(peer, bytes, steady_ms());
        sender_ = {};
    };
    for (int turn = 0; turn < kMessagesPerTurn && !stopping_; ++turn)
        if (!router.receive(handle)) return true;
    return false;
}

SendResult ZmqTransport::send(PeerId const& peer, std::span<std::uint8_t const> bytes) {
    if (local_->is_of(peer)) return local_->send(peer, bytes);
    if (control_ && control_->router->is_of(peer)) return control_->router->send(peer, bytes);
    return SendResult::Gone;
}

}  // namespace

Result<std::unique_ptr<Transport>> Transport::listen(Options const& options) {
    auto transport = std::make_unique<ZmqTransport>(options);
    DKV_TRY(transport->open());
    return std::unique_ptr<Transport>(std::move(transport));
}

}  // namespace dkv
