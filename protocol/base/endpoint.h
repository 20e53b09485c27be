// Where a sidecar listens: one rule for the daemon, the controller and the SDK.
#pragma once

#include <string>

#include "protocol/base/result.h"

namespace dkv {

/// DKV_ENDPOINT, else ipc://$XDG_RUNTIME_DIR/dkv/dkvd.sock, else ipc:///tmp/dkv-UID/dkvd.sock.
std::string default_endpoint();

/// Errors: InvalidArgument, quoting the endpoint, unless it is ipc://PATH with a PATH that a Unix
/// socket can have (107 bytes), tcp://HOST:PORT, or inproc://NAME.
Result<void> check_endpoint(std::string const& endpoint);

/// Before a client connects: the folder of the socket and the socket are this user's or root's, and
/// no other user can put another socket there. What is missing is fine: no sidecar listens then.
///
/// Errors: PermissionDenied, naming the folder or the socket, its owner or its mode.
Result<void> check_socket_place(std::string const& endpoint);

/// The path of an ipc:// endpoint, or "" for another kind.
std::string ipc_path(std::string const& endpoint);

}  // namespace dkv
