// The daemon: one struct that owns every part, in the order in which they depend on each other.
#pragma once

#include <memory>

#include "protocol/base/result.h"
#include "sidecar/config/config.h"

namespace dkv {

class Daemon {
public:
    /// Binds the endpoint; nothing is answered before run().
    /// Errors: InvalidArgument; AlreadyExists when a sidecar listens there; Io.
    static Result<std::unique_ptr<Daemon>> start(Config const& config);
    virtual ~Daemon() = default;

    /// Serves until stop() or a Stop request, then lets go of every engine's memory.
    virtual Result<void> run() = 0;
    /// From any thread or a signal handler.
    virtual void stop() noexcept = 0;
};

/// What dkvd's main and `dkv serve` do: start, SIGINT and SIGTERM stop it, run. Logs to stderr.
Result<void> run_daemon(Config const& config);

}  // namespace dkv
