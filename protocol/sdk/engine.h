// One attached engine: its line to the sidecar, what the sidecar has mapped of it, and its tallies.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include <sys/types.h>

#include "protocol/base/geometry.h"
#include "protocol/base/result.h"
#include "protocol/sdk/arena.h"
#include "protocol/sdk/connection.h"
#include "protocol/sdk/device.h"
#include "protocol/sdk/fences.h"

namespace dkv::sdk {

struct EngineOptions {
    std::string endpoint;
    std::string engine;
    std::string model;
    std::string device = "cpu";  ///< With `gpu`, its UUID.
    std::shared_ptr<Device const> gpu;
    std::uint64_t group = 0;
    Geometry geometry;
    milliseconds timeout{2000};
};

class Engine : public std::enable_shared_from_this<Engine> {
public:
    /// Errors: InvalidArgument for geometry or endpoint, or a device other than the CPU without
    /// its functions; Io.
    static Result<std::shared_ptr<Engine>> open(EngineOptions options);

    /// Says goodbye. Sessions and arenas that are left over find the line dead, which is safe.
    void close();

    Connection& connection() noexcept { return *connection_; }
    EngineOptions const& options() const noexcept { return options_; }
    std::uint64_t instance() const noexcept { return instance_; }
    Deadline deadline() const { return Clock::now() + options_.timeout; }

    /// False in a child after fork(), which has no thread to answer for it.
    bool is_own_process() const noexcept;

    /// The number under which this epoch's sidecar knows the arena; asks for it at the first use.
    /// Errors: of Connection::call.
    Result<std::uint64_t> region_of(std::shared_ptr<Arena> const& arena,
                                    bool writable,
                                    std::uint64_t epoch,
                                    Deadline deadline);

    /// Memory for a session's buffers, where the engine's own rows are.
    /// Errors: Io; on a device LimitExceeded, Device.
    Result<std::shared_ptr<Arena>> make_arena(std::uint64_t bytes);
    /// Behind everything queued on `stream`. Errors: BadState without a device; of Fences::put.
    Result<Fence> fence(void* stream, std::uint64_t epoch, Deadline deadline);

    void count_opened();
    void count_failed(Error const& why);
    struct Tally {
        std::uint64_t sessions_opened = 0;
        std::uint64_t sessions_failed = 0;
        std::string last_error;
    };
    Tally tally() const;

private:
    struct Region {
        std::uint64_t epoch = 0;
        std::uint64_t number = 0;
    };
    Engine(EngineOptions options, std::uint64_t instance);
    std::optional<std::uint64_t> known_region(std::uint64_t arena, std::uint64_t epoch) const;
    /// What wait_for_detach leaves to its late reply.
    struct Detaching;
    Result<std::uint64_t> register_region(Arena& arena,
                                          bool writable,
                                          std::uint64_t epoch,
                                          Deadline deadline);
    Result<void> forget(std::uint64_t arena, std::shared_ptr<void> memory);
    void unregister(std::uint64_t epoch, std::uint64_t number);
    Result<void> wait_for_detach(Region const& region, std::shared_ptr<void> memory);
    /// Frees what sidecars let go of after its deadline: on this thread, not on the connection's.
    void collect();

    EngineOptions const options_;
    std::uint64_t const instance_;
    pid_t const owner_;
    mutable std::mutex mutex_;
    std::unordered_map<std::uint64_t, Region> regions_;  // By arena.
    Tally tally_;
    std::vector<std::shared_ptr<void>> let_go_;
    std::optional<Fences> fences_;
    std::unique_ptr<Connection> connection_;  // Last: its thread ends before the rest goes.
};

}  // namespace dkv::sdk
