// Takes descriptors from engines over a Unix socket of its own: ZeroMQ carries none. One message
// per descriptor: an instance, a ticket, and exactly one descriptor. Nothing is answered.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"

namespace dkv {

class FdSocket {
public:
    /// Called by the socket's own thread. An error ends the connection that it came over.
    using Sink =
        std::function<Result<void>(std::uint64_t instance, std::uint64_t ticket, UniqueFd file)>;

    static constexpr std::size_t kConnectionsMax = 64;

    /// Listens beside the socket of an ipc:// endpoint, whose place and lock the caller holds,
    /// under the same rule: this user only. nullptr for an endpoint of another kind. Errors:
    /// Io; InvalidArgument when the path would be too long for a socket.
    static Result<std::unique_ptr<FdSocket>> listen(std::string const& endpoint, Sink sink);
    virtual ~FdSocket() = default;

    virtual std::string const& path() const noexcept = 0;
};

}  // namespace dkv
