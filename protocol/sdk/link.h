// One DEALER socket and the monitor that watches it. Knows connections, not messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <zmq.hpp>

#include "protocol/base/result.h"
#include "protocol/keys/key_files.h"
#include "protocol/sdk/clock.h"

namespace dkv::sdk {

/// What a wait() has seen. Messages came before the link went down.
struct LinkNews {
    std::vector<zmq::message_t> messages;
    bool up = false;       ///< The two sides have shaken hands: requests can be sent.
    bool down = false;     ///< A connection that was up is lost; what was queued is dropped.
    bool refused = false;  ///< No sidecar accepted; the link goes on trying.
    /// What listens there is another user's, or the keys do not fit. Nothing was sent to it, and
    /// nothing will be.
    std::optional<Error> foreign = {};
};

/// What a link over tcp:// takes.
struct LinkKeys {
    keys::KeyPair own;
    std::string sidecar;                      ///< Its public key.
    std::filesystem::path sidecar_file = {};  ///< Where that is from: for messages.
};

/// Belongs to one thread. A message is sent to a peer that is there now, or not at all.
class Link {
public:
    /// Errors: Io when the system refuses a socket; Unsupported for inproc://, and for tcp://
    /// without keys; PermissionDenied when the socket or its folder belongs to another user.
    static Result<std::unique_ptr<Link>> open(zmq::context_t& context,
                                              std::string const& endpoint,
                                              std::optional<LinkKeys> keys = {});

    ~Link();
    Link(Link const&) = delete;
    Link& operator=(Link const&) = delete;

    /// A peer accepted, though perhaps without shaking hands.
    bool is_connected() const noexcept { return connected_; }

    /// Never blocks. Errors: Unavailable when no peer is there or its queue is full.
    Result<void> send(std::span<std::uint8_t const> bytes);

    /// Waits for news, for `wake_fd` to become readable, or for `timeout`.
    LinkNews wait(Clock::duration timeout, int wake_fd = -1);

private:
    Link(zmq::socket_t socket,
         zmq::socket_t monitor,
         std::string endpoint,
         std::optional<LinkKeys> keys)
        : monitor_(std::move(monitor)),
          socket_(std::move(socket)),
          endpoint_(std::move(endpoint)),
          keys_(std::move(keys)) {}
    void drain_monitor(LinkNews& news);
    std::optional<Error> foreign_peer(int connection) const;
    std::optional<Error> refused_keys(std::uint16_t event, std::int32_t value) const;

    zmq::socket_t monitor_;  // Declared first: it outlives the socket that writes to it.
    zmq::socket_t socket_;
    std::string endpoint_;
    std::optional<LinkKeys> keys_;
    bool connected_ = false;
    bool up_ = false;
    std::optional<Error> foreign_;  ///< Of the connection as it is.
};

}  // namespace dkv::sdk
