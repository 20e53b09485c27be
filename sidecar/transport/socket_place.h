// The place of a Unix socket on disk: a directory that only its owner can write to, and a lock
// beside the socket, so that two sidecars cannot take the same place at once.
#pragma once

#include <string>

#include <sys/types.h>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"

namespace dkv {

/// Held for as long as a sidecar listens at an ipc:// endpoint. Removes the socket when it goes.
class SocketPlace {
public:
    /// Makes the directory (mode 0700) where it is missing, takes the lock, removes a socket that
    /// no process listens at any more. For an endpoint that is not ipc:// there is nothing to do.
    ///
    /// Errors: AlreadyExists when a sidecar listens there, or something that is not a socket is in
    /// the way; InvalidArgument, naming the directory, when it belongs to another user or others
    /// may write to it; Io.
    static Result<SocketPlace> take(std::string const& endpoint);

    SocketPlace(SocketPlace&& other) noexcept;
    SocketPlace& operator=(SocketPlace&&) = delete;
    ~SocketPlace();

    /// After the bind. Errors: Io.
    Result<void> bound();
    /// Whether the socket is still there under its name; until then no client can reach it.
    bool is_there() const noexcept;

private:
    SocketPlace() = default;

    std::string path_;  ///< Empty: nothing on disk.
    ino_t inode_ = 0;   ///< Of the socket; 0: not bound.
    UniqueFd lock_;
};

/// While it lives, files of this process are made for its user alone: a socket is closed to others
/// from its first moment, whatever the umask was.
class OwnerOnly {
public:
    OwnerOnly() noexcept;
    OwnerOnly(OwnerOnly const&) = delete;
    OwnerOnly& operator=(OwnerOnly const&) = delete;
    ~OwnerOnly();

private:
    mode_t before_;
};

}  // namespace dkv
