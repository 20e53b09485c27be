#include "protocol/base/fd_message.h"

#include <array>
#include <cstring>

#include <sys/socket.h>

#include "protocol/base/assert.h"

namespace dkv {
namespace {

struct alignas(cmsghdr) Control : std::array<char, CMSG_SPACE(kFdsMax * sizeof(int))> {};

}  // namespace

ssize_t send_fds(int socket, std::span<std::byte const> bytes, std::span<int const> fds) noexcept {
    DKV_ASSERT(fds.size() <= kFdsMax);
    Control control{};
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
        message.msg_control = control.data();
        message.msg_controllen = CMSG_SPACE(fds.size_bytes());
        cmsghdr* const header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fds.size_bytes());
        std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
    }
    return ::sendmsg(socket, &message, MSG_NOSIGNAL);
}

FdMessage receive_fds(int socket, std::span<std::byte> bytes, int flags) {
    Control control{};
    iovec part{bytes.data(), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    FdMessage received;
    received.size = ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
    if (received.size < 0) return received;
    received.cut = (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) != 0;
    for (auto* item = CMSG_FIRSTHDR(&message); item != nullptr;
         item = CMSG_NXTHDR(&message, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
        std::size_t const count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t at = 0; at < count; ++at) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(item) + at * sizeof fd, sizeof fd);
            received.fds.emplace_back(fd);
        }
    }
    return received;
}

}  // namespace dkv
