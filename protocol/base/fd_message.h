// Descriptors beside a message's bytes, over a Unix socket (SCM_RIGHTS).
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include <sys/types.h>

#include "protocol/base/unique_fd.h"

namespace dkv {

/// A message has no more of them; of those that come with one too many are closed unseen.
inline constexpr std::size_t kFdsMax = 8;

/// As sendmsg(): how many bytes went, or -1 and errno, never a signal. The descriptors stay the
/// caller's too.
ssize_t send_fds(int socket, std::span<std::byte const> bytes, std::span<int const> fds) noexcept;

struct FdMessage {
    ssize_t size = -1;          ///< As of recvmsg(): -1 and errno, 0 when the peer is through.
    std::vector<UniqueFd> fds;  ///< Closed on exec.
    bool cut = false;           ///< There were more of them, or bytes, than there was room for.
};
FdMessage receive_fds(int socket, std::span<std::byte> bytes, int flags = 0);

}  // namespace dkv
