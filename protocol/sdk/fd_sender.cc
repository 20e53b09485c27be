#include "protocol/sdk/fd_sender.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "protocol/base/fd_message.h"
#include "protocol/base/peer.h"

namespace dkv::sdk {
namespace {

Error failed(std::string const& socket, char const* what) {
    if (errno == EAGAIN)
        return Error{ErrorCode::DeadlineExceeded,
                     "the sidecar at " + socket + " did not take a descriptor in time"};
    bool const nobody =
        errno == ENOENT || errno == ECONNREFUSED || errno == ECONNRESET || errno == EPIPE;
    return Error{nobody ? ErrorCode::Unavailable : ErrorCode::Io,
                 std::string("a descriptor for the sidecar at ") + socket + ": " + what + ": " +
                     std::strerror(errno)};
}

/// Of connect and send both: the sidecar's queue may be full.
Result<void> set_deadline(UniqueFd const& line, std::string const& socket, Deadline deadline) {
    auto const left =
        std::max(milliseconds(1), std::chrono::ceil<milliseconds>(deadline - Clock::now()));
    timeval const limit{left.count() / 1000, left.count() % 1000 * 1000};
    if (::setsockopt(line.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)
        return failed(socket, "deadline");
    return {};
}

Result<UniqueFd> connected(std::string const& socket, Deadline deadline) {
    sockaddr_un address{};
    if (socket.size() >= sizeof address.sun_path)
        return Error{ErrorCode::InvalidArgument, "the sidecar's descriptor socket '" + socket +
                                                     "' is longer than " +
                                                     std::to_string(sizeof address.sun_path - 1)};
    address.sun_family = AF_UNIX;
    std::copy(socket.begin(), socket.end(), address.sun_path);
    UniqueFd line(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!line) return failed(socket, "socket");
    DKV_TRY(set_deadline(line, socket, deadline));
    if (::connect(line.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
        return failed(socket, "connect");
    auto const peer = peer_of(line.get());
    if (!peer || !is_trusted(peer->uid))
        return Error{ErrorCode::PermissionDenied,
                     "the sidecar's descriptor socket " + socket +
                         " is not this user's: no descriptor was sent to it"};
    return line;
}

}  // namespace

Result<void> send_descriptor(std::string const& socket,
                             std::uint64_t instance,
                             std::uint64_t ticket,
                             UniqueFd const& file,
                             Deadline deadline) {
    if (socket.empty())
        return Error{ErrorCode::Unsupported,
                     "the sidecar takes no descriptors: it is reached over TCP, or has no CUDA"};
    auto const line = DKV_TRY(connected(socket, deadline));

    std::array const words{instance, ticket};
    std::array const fds{file.get()};
    if (send_fds(line.get(), std::as_bytes(std::span(words)), fds) < 0)
        return failed(socket, "send");
    return {};
}

}  // namespace dkv::sdk
