#include "protocol/base/peer.h"

#include <unistd.h>

#include <sys/socket.h>

namespace dkv {

std::optional<PeerCredentials> peer_of(int socket) noexcept {
    ucred peer{};
    socklen_t size = sizeof peer;
    int family = 0;
    socklen_t family_size = sizeof family;
    if (::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &family, &family_size) != 0 ||
        family != AF_UNIX || ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
        return std::nullopt;
    return PeerCredentials{peer.uid, peer.pid};
}

bool is_trusted(uid_t uid) noexcept {
    return uid == ::geteuid() || uid == 0;
}

}  // namespace dkv
