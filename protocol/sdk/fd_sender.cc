#include "protocol/sdk/fd_sender.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <poll.h>

#include <sys/socket.h>
#include <sys/un.h>

namespace dkv::sdk {
namespace {

Error failed(std::string const& socket, char const* what) {
    bool const nobody =
        errno == ENOENT || errno == ECONNREFUSED || errno == ECONNRESET || errno == EPIPE;
    return Error{nobody ? ErrorCode::Unavailable : ErrorCode::Io,
                 std::string("a descriptor for the sidecar at ") + socket + ": " + what + ": " +
                     std::strerror(errno)};
}

Result<UniqueFd> connected(std::string const& socket) {
    sockaddr_un address{};
    if (socket.size() >= sizeof address.sun_path)
        return Error{ErrorCode::InvalidArgument, "the sidecar's descriptor socket '" + socket +
                                                     "' is longer than " +
                                                     std::to_string(sizeof address.sun_path - 1)};
    address.sun_family = AF_UNIX;
    std::copy(socket.begin(), socket.end(), address.sun_path);
    UniqueFd line(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!line) return failed(socket, "socket");
    if (::connect(line.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
        return failed(socket, "connect");
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
    auto const line = DKV_TRY(connected(socket));

    std::array<std::uint64_t, 2> words{instance, ticket};
    iovec part{words.data(), sizeof words};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    int const fd = file.get();
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (::sendmsg(line.get(), &message, MSG_NOSIGNAL) < 0) return failed(socket, "send");

    // Its byte says that the descriptor is there, so that no message can come before it.
    auto const left = std::chrono::ceil<milliseconds>(deadline - Clock::now());
    pollfd wait{line.get(), POLLIN, 0};
    int const ready = ::poll(&wait, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (ready < 0) return failed(socket, "poll");
    if (ready == 0)
        return Error{ErrorCode::DeadlineExceeded,
                     "the sidecar at " + socket + " did not take a descriptor in time"};
    char byte = 0;
    ssize_t const got = ::recv(line.get(), &byte, sizeof byte, 0);
    if (got < 0) return failed(socket, "receive");
    if (got == 0)
        return Error{ErrorCode::Unavailable, "the sidecar at " + socket + " took no descriptor"};
    return {};
}

}  // namespace dkv::sdk
