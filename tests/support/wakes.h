// What workers ring, and the loop of a test waits for.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include <doctest/doctest.h>

namespace dkv::test {

class Wakes {
public:
    void ring() {
        {
            std::lock_guard const lock(mutex_);
            rung_ = true;
        }
        condition_.notify_one();
    }
    /// Until it was rung since the last wait; a minute at most.
    void wait() {
        std::unique_lock lock(mutex_);
        REQUIRE(condition_.wait_for(lock, std::chrono::minutes(1), [this] { return rung_; }));
        rung_ = false;
    }

private:
    std::mutex mutex_;
    std::condition_variable condition_;
    bool rung_ = false;
};

}  // namespace dkv::test
