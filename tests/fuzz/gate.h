// What workers ring. Held, it keeps each worker where it is after its next report, so that a test
// sees the states that last for a moment only.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include <doctest/doctest.h>

namespace dkv::fuzz {

class Gate {
public:
    /// A worker's: may wait.
    void ring() {
        std::unique_lock lock(mutex_);
        rung_ = true;
        changed_.notify_all();
        auto const turn = turn_;
        changed_.wait(lock, [&] { return !held_ || turn_ != turn; });
    }
    /// Until it was rung since the last wait; a minute at most.
    void wait() {
        std::unique_lock lock(mutex_);
        REQUIRE(changed_.wait_for(lock, std::chrono::minutes(1), [this] { return rung_; }));
        rung_ = false;
    }
    void hold() {
        std::lock_guard const lock(mutex_);
        held_ = true;
    }
    /// Lets the workers that wait go on to their next report.
    void pass() {
        std::lock_guard const lock(mutex_);
        ++turn_;
        changed_.notify_all();
    }
    void open() {
        std::lock_guard const lock(mutex_);
        held_ = false;
        changed_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool rung_ = false;
    bool held_ = false;
    std::uint64_t turn_ = 0;
};

}  // namespace dkv::fuzz
