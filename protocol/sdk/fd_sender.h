// Hands a descriptor to the sidecar: ZeroMQ carries bytes only.
#pragma once

#include <cstdint>
#include <string>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"
#include "protocol/sdk/clock.h"

namespace dkv::sdk {

/// Over the Unix socket of Welcome.fd_socket, under a ticket that the message which needs it names.
/// Sent, not answered: that message waits for it over there.
///
/// Errors: Unsupported when the sidecar takes none (`socket` is empty); Unavailable when none
/// answers there; DeadlineExceeded; Io.
Result<void> send_descriptor(std::string const& socket,
                             std::uint64_t instance,
                             std::uint64_t ticket,
                             UniqueFd const& file,
                             Deadline deadline);

}  // namespace dkv::sdk
