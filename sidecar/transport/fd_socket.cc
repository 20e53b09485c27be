#include "sidecar/transport/fd_socket.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <poll.h>
#include <thread>
#include <utility>
#include <vector>

#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <system_error>

#include "protocol/base/endpoint.h"
#include "protocol/base/fd_message.h"
#include "protocol/base/peer.h"
#include "sidecar/metrics/log_limit.h"
#include "sidecar/transport/socket_place.h"
#include "sidecar/transport/transport.h"

namespace dkv {
namespace {

constexpr int kBacklog = 64;
constexpr int kPauseMs = 1000;  // Between two tries where the process has no descriptor left.

Error descriptor_error(std::string const& what) {
    return {ErrorCode::Io, what + ": " + std::generic_category().message(errno)};
}

struct Message {
    std::uint64_t instance = 0;
    std::uint64_t ticket = 0;
};

/// The message and its one descriptor. Errors: CorruptData for anything else, every descriptor of
/// it closed; Unavailable when the peer is through.
struct Received {
    Message message;
    UniqueFd file;
};
Result<Received> receive(int connection) {
    std::array<std::byte, sizeof(Message) + 1> bytes{};
    auto [size, files, cut] = receive_fds(connection, bytes, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return Error{ErrorCode::DeadlineExceeded, "nothing there"};
    if (size < 0) return descriptor_error("cannot receive a descriptor");
    if (size == 0 && files.empty()) return Error{ErrorCode::Unavailable, "the peer is through"};
    if (size != sizeof(Message) || files.size() != 1 || cut)
        return Error{ErrorCode::CorruptData, "a message of " + std::to_string(size) +
                                                 " bytes and " + std::to_string(files.size()) +
                                                 " descriptors, not of 16 and one"};
    Received received;
    std::memcpy(&received.message, bytes.data(), sizeof(Message));
    received.file = std::move(files.front());
    return received;
}

/// The directory keeps other users out; this still holds if its mode was widened later.
bool is_own_user(int connection) {
    auto const peer = peer_of(connection);
    return peer && is_trusted(peer->uid);
}

class Listening final : public FdSocket {
public:
    Listening(std::string path, UniqueFd socket, UniqueFd stop, Sink sink)
        : path_(std::move(path)),
          socket_(std::move(socket)),
          stop_(std::move(stop)),
          sink_(std::move(sink)),
          thread_([this] { run(); }) {}
    ~Listening() override {
        [[maybe_unused]] auto const written = ::eventfd_write(stop_.get(), 1);
        thread_.join();
        ::unlink(path_.c_str());
    }
    std::string const& path() const noexcept override { return path_; }

private:
    void run();
    void accept_one();
    bool serve(int connection);

    std::string const path_;
    UniqueFd const socket_;
    UniqueFd const stop_;
    Sink const sink_;
    std::vector<UniqueFd> connections_;
    LogLimit log_;
    bool pausing_ = false;  // Who waits stays in the backlog; polling for them would spin.
    std::thread thread_;    // Last: it uses the others from its first moment.
};

void Listening::run() {
    while (true) {
        std::vector<pollfd> polled{{stop_.get(), POLLIN, 0}, {socket_.get(), POLLIN, 0}};
        if (pausing_) polled[1].fd = -1;
        for (auto const& connection : connections_)
            polled.push_back({connection.get(), POLLIN, 0});
        if (::poll(polled.data(), polled.size(), pausing_ ? kPauseMs : -1) < 0 && errno != EINTR) {
            spdlog::error("descriptors are not taken any more: poll: {}",
                          std::generic_category().message(errno));
            return;
        }
        if (polled[0].revents != 0) return;
        // From the end: what goes does not move what is still to be looked at.
        for (std::size_t at = connections_.size(); at-- > 0;)
            if (polled[2 + at].revents != 0 && !serve(connections_[at].get()))
                connections_.erase(connections_.begin() + static_cast<std::ptrdiff_t>(at));
        if (pausing_ || polled[1].revents != 0) accept_one();
    }
}

void Listening::accept_one() {
    UniqueFd connection(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    bool const paused = std::exchange(pausing_, false);
    if (!connection) {
        pausing_ = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
        if (pausing_ && !paused)
            spdlog::warn("connections for descriptors wait: {}",
                         std::generic_category().message(errno));
        return;
    }
    if (!is_own_user(connection.get())) {
        log_.say(spdlog::level::warn, "a connection for descriptors refused", steady_ms(),
                 "a connection for descriptors refused: it is another user's");
    } else if (connections_.size() >= kConnectionsMax) {
        log_.say(
            spdlog::level::warn, "a connection for descriptors refused", steady_ms(),
            fmt::format("a connection for descriptors refused: {} are open, which is the limit",
                        connections_.size()));
    } else {
        connections_.push_back(std::move(connection));
    }
}

/// False: the connection is over.
bool Listening::serve(int connection) {
    auto received = receive(connection);
    if (!received) {
        if (received.error().code == ErrorCode::DeadlineExceeded) return true;
        if (received.error().code != ErrorCode::Unavailable)
            log_.say(
                spdlog::level::warn, "a connection for descriptors ended", steady_ms(),
                fmt::format("a connection for descriptors ended: {}", received.error().message));
        return false;
    }
    auto& [message, file] = received.value();
    auto const taken = sink_(message.instance, message.ticket, std::move(file));
    if (taken) return true;
    log_.say(spdlog::level::warn, "a descriptor refused", steady_ms(),
             fmt::format("a descriptor refused: {}", taken.error().message));
    return false;
}

}  // namespace

Result<std::unique_ptr<FdSocket>> FdSocket::listen(std::string const& endpoint, Sink sink) {
    auto path = ipc_path(endpoint);
    if (path.empty()) return std::unique_ptr<FdSocket>();
    path += ".fds";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path))
        return Error{ErrorCode::InvalidArgument, "path '" + path + "' is too long for a socket"};
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    UniqueFd stop(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!socket || !stop) return descriptor_error("cannot make a socket");
    // The holder of the endpoint's lock holds this name too: a socket found there is stale.
    struct stat info {};
    if (::lstat(path.c_str(), &info) == 0) {
        if (!S_ISSOCK(info.st_mode))
            return Error{ErrorCode::AlreadyExists,
                         "'" + path + "' is in the way: it exists and is not a socket"};
        ::unlink(path.c_str());
    }
    OwnerOnly const closed_to_others;
    if (::bind(socket.get(), reinterpret_cast<sockaddr const*>(&address), sizeof address) != 0 ||
        ::listen(socket.get(), kBacklog) != 0)
        return descriptor_error("cannot listen at '" + path + "'");
    return std::unique_ptr<FdSocket>(std::make_unique<Listening>(std::move(path), std::move(socket),
                                                                 std::move(stop), std::move(sink)));
}

}  // namespace dkv
