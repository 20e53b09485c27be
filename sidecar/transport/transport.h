// Bytes in, bytes out. Knows no message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "protocol/base/peer.h"
#include "protocol/base/result.h"
#include "protocol/base/steady.h"

namespace dkv {

/// What a message came from: opaque, given back to send().
using PeerId = std::string;

/// What a sidecar does with what comes. Called by the thread in Transport::run() only. Times are
/// milliseconds of the steady clock.
class TransportHandler {
public:
    virtual ~TransportHandler() = default;
    virtual void on_message(PeerId const& peer,
                            std::span<std::byte const> bytes,
                            std::uint64_t now) = 0;
    /// After one or more wake(), or when the watched descriptor is readable.
    virtual void on_wake(std::uint64_t now) = 0;
    virtual void on_tick(std::uint64_t now) = 0;
};

enum class SendResult : std::uint8_t {
    Sent,
    Full,  ///< The peer does not read; the message is lost.
    Gone   ///< The peer is gone.
};

class Transport {
public:
    /// A second socket, tcp:// for controllers that prove a key (CURVE).
    struct Control {
        std::string endpoint;              ///< Empty: there is none.
        std::string secret_key_file = {};  ///< Empty: dkv.key_secret in keys::folder().
        std::string clients_folder = {};   ///< Empty: clients/ beside that file.
    };
    struct Options {
        std::string endpoint;
        std::size_t message_bytes_max = 0;  ///< A peer that sends more is disconnected.
        int messages_queued_max = 4096;     ///< Per peer, towards it.
        std::uint32_t tick_ms = 1000;
        Control control = {};
    };

    /// Binds. Errors: InvalidArgument; AlreadyExists when a sidecar listens there; Io; for control
    /// also Unsupported without CURVE, and what keys::read_pair() and ClientKeys::open() say.
    static Result<std::unique_ptr<Transport>> listen(Options const& options);
    virtual ~Transport() = default;

    /// Where it listens: the endpoint, with its port where that was chosen by the system.
    virtual std::string const& endpoint() const noexcept = 0;
    /// Likewise, for controllers elsewhere; "" where there is none.
    virtual std::string control_endpoint() const = 0;

    /// Serves until stop(). `watched_fd` (-1: none) is waited for too.
    virtual Result<void> run(TransportHandler& handler, int watched_fd) = 0;

    /// Never waits. From the thread in run() only.
    virtual SendResult send(PeerId const& peer, std::span<std::uint8_t const> bytes) = 0;

    /// Of the message that on_message() is being given: who sent it, as the kernel said when the
    /// connection was made, or as its key says.
    virtual Sender const& sender() const noexcept = 0;

    /// From any thread.
    virtual void wake() noexcept = 0;
    /// From any thread or a signal handler. What was sent before still goes out.
    virtual void stop() noexcept = 0;
};

}  // namespace dkv
