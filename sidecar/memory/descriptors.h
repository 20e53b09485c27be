// Descriptors that engines sent, until the requests that name them come.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"

namespace dkv {

/// Safe from any thread.
class Descriptors {
public:
    using Clock = std::chrono::steady_clock;
    struct Limits {
        std::size_t most = 1024;
        std::size_t most_per_instance = 256;
        std::chrono::milliseconds kept{10'000};      ///< After that it is closed, unused.
        std::chrono::milliseconds waited_for{2000};  ///< It may be under way when it is asked for.
    };
    Descriptors() = default;
    explicit Descriptors(Limits const& limits) : limits_(limits) {}

    /// Errors: InvalidArgument for a ticket that is 0; AlreadyExists for one that waits already;
    /// LimitExceeded. The descriptor is closed then.
    Result<void> put(std::uint64_t instance, std::uint64_t ticket, UniqueFd file);

    /// Waits for it, unless `cancelled` (which forget() makes it look at). Errors: NotFound;
    /// Cancelled.
    Result<UniqueFd> take(std::uint64_t instance,
                          std::uint64_t ticket,
                          std::atomic<bool> const& cancelled);

    /// Closes what an instance sent.
    void forget(std::uint64_t instance);
    /// Closes what waits too long.
    void expire(Clock::time_point now = Clock::now());

    std::size_t count() const;

private:
    struct Waiting {
        UniqueFd file;
        Clock::time_point since;
    };
    using Key = std::pair<std::uint64_t, std::uint64_t>;  // Instance, ticket.

    Limits limits_;
    mutable std::mutex mutex_;
    std::condition_variable came_;
    std::map<Key, Waiting> waiting_;
};

}  // namespace dkv
