// One listening ROUTER socket: what comes in, as one message of one frame; what goes out. A sidecar
// has one for this machine and perhaps one for controllers elsewhere.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>

#include <zmq.hpp>

#include "sidecar/transport/socket_place.h"
#include "sidecar/transport/transport.h"

namespace dkv {

class Router {
public:
    struct Options {
        std::string endpoint;
        char mark = 0;  ///< Begins the PeerId of every peer here: identities are per socket.
        std::size_t message_bytes_max = 0;
        int messages_queued_max = 0;
        std::string secret_key = {};  ///< Z85. Peers prove a key of theirs; empty: they do not.
    };
    using Handle =
        std::function<void(PeerId const& peer, std::span<std::byte const> bytes, Sender sender)>;

    /// Binds. With a secret key, the context must have a Zap. Errors: as Transport::listen().
    static Result<std::unique_ptr<Router>> listen(zmq::context_t& context, Options options);

    /// With its port where that was chosen by the system.
    std::string const& endpoint() const noexcept { return endpoint_; }
    void* handle() noexcept { return socket_.handle(); }
    bool is_of(PeerId const& peer) const noexcept { return peer.starts_with(options_.mark); }

    /// Takes one message; false where none waits.
    bool receive(Handle const& handle);
    SendResult send(PeerId const& peer, std::span<std::uint8_t const> bytes);

    /// Binds anew where the socket's file was removed: what is connected stays, but nothing new
    /// comes.
    Result<void> stay_reachable();

private:
    Router(zmq::context_t& context, Options options, SocketPlace place)
        : options_(std::move(options)),
          place_(std::move(place)),
          socket_(context, zmq::socket_type::router) {}
    void configure();
    Result<void> bind();
    Sender sender_of(zmq::message_t& message) const;
    std::size_t bytes_on_wire(std::size_t frame) const noexcept;

    Options options_;
    std::string endpoint_;
    std::optional<SocketPlace>
        place_;  // Before the socket: its file is removed after the socket was closed.
    zmq::socket_t socket_;
    std::unordered_map<PeerId, int> connections_;  ///< Over which peers sent last.
};

}  // namespace dkv
