// Who may connect with CURVE: libzmq asks over ZAP (ZeroMQ's RFC 27), a socket of its own context,
// once for each handshake, and this answers.
#pragma once

#include <zmq.hpp>

#include "sidecar/metrics/log_limit.h"
#include "sidecar/transport/client_keys.h"

namespace dkv {

inline constexpr char const* kZapDomain = "dkv";

class Zap {
public:
    /// Before any socket of `context` is bound: without it libzmq would let every key in.
    Zap(zmq::context_t& context, ClientKeys clients);

    void* handle() noexcept { return socket_.handle(); }
    /// Answers what waits, and never waits itself.
    void answer_all();

private:
    zmq::socket_t socket_;
    ClientKeys clients_;
    LogLimit log_;
};

}  // namespace dkv
