// Who is at the other end of a Unix socket, as the kernel tells it.
#pragma once

#include <optional>
#include <string>

#include <sys/types.h>

namespace dkv {

struct PeerCredentials {
    uid_t uid = 0;
    pid_t pid = 0;  ///< 0: the process is in a pid namespace that cannot be seen from here.

    bool operator==(PeerCredentials const&) const = default;
};

/// Whom a message comes from. Neither: a TCP socket without keys, where it can be anyone.
struct Sender {
    std::optional<PeerCredentials> process = {};  ///< Over a Unix socket.
    std::string key = {};  ///< Over TCP with CURVE: the name of the key that was let in.

    bool is_anyone() const noexcept { return !process && key.empty(); }
};

/// Of a connected Unix socket; nothing for a socket of another kind.
std::optional<PeerCredentials> peer_of(int socket) noexcept;

/// Memory is lent and taken among processes of one user. Root may look at it anyway.
bool is_trusted(uid_t uid) noexcept;

}  // namespace dkv
