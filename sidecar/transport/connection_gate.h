// What this process takes over sockets: how many connections, whose (of a Unix socket), and how
// many bytes wait in each, either way. libzmq has no such bounds: it ends the process when accept()
// finds no descriptor left, keeps a message of endless frames until memory ends, and counts what
// its peers do not read in messages. So its accept4(), recv() and send() are ours
// (connection_gate.cc), and it sees a connection that its peer has closed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dkv {

struct ConnectionLimits {
    std::size_t connections_max =
        0;  ///< Open at once, of both kinds. 0: no bounds at all, the state at the start.
    /// A connection whose descriptor would have this number or a higher one is closed: the numbers
    /// behind it stay free for the sidecar's own work.
    int descriptors_end = 0;
    /// Of one connection, received and not handled; it is closed when there are more.
    std::int64_t bytes_in_max = 0;
    /// Of one connection, and of all: what the peer has not read.
    std::int64_t bytes_out_max = 0;
    std::int64_t bytes_out_in_all_max = 0;
};

/// For every socket that this process accepts from now on.
void bound_connections(ConnectionLimits const& limits);

/// How many of all connections may be over TCP.
std::size_t tcp_connections_max(std::size_t connections_max) noexcept;

/// `bytes` that came over the connection were handled, headers of frames included.
void note_handled(int connection, std::size_t bytes) noexcept;

/// Whether `bytes` more may wait for the peer; they are counted then, until they have been sent.
/// What a single message needs is granted where nothing waits.
bool take_room(int connection, std::size_t bytes) noexcept;

/// How many connections were closed because of a limit or because of their user.
std::size_t connections_refused() noexcept;

}  // namespace dkv
