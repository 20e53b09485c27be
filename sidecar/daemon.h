// The daemon: one struct that owns every part, in the order in which they depend on each other.
#pragma once

#include <functional>
#include <memory>

#include "protocol/base/result.h"
#include "sidecar/config/config.h"

namespace dkv {

/// Reads the configuration that the process was started with again.
using ReadConfig = std::function<Result<Config>()>;

class Daemon {
public:
    /// Binds the endpoint; nothing is answered before run().
    /// Errors: InvalidArgument; AlreadyExists when a sidecar listens there; Io.
    static Result<std::unique_ptr<Daemon>> start(Config const& config, ReadConfig again = {});
    virtual ~Daemon() = default;

    /// Serves until stop() or a Stop request, then lets go of every engine's memory.
    virtual Result<void> run() = 0;
    /// From any thread or a signal handler, as are the next two.
    virtual void stop() noexcept = 0;
    /// Takes no new session, and stops when those that are open are over, config.drain_ms from now
    /// at the latest.
    virtual void drain() noexcept = 0;
    /// Takes what may change of the configuration that `again` gives; where something else has
    /// changed or is wrong, the old one stays and the log says why.
    virtual void reload() noexcept = 0;
};

/// What dkvd's main and `dkv serve` do: start and run. SIGTERM drains it, SIGINT and a second
/// SIGTERM stop it at once, SIGHUP reloads a configuration that has a file. Logs to stderr.
Result<void> run_daemon(Config const& config, ReadConfig const& again);

}  // namespace dkv
