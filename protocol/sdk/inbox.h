// What the sidecar says of one session, from the connection's thread to the session's.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "protocol/base/error.h"
#include "protocol/schema/dkv_generated.h"
#include "protocol/sdk/answers.h"
#include "protocol/sdk/clock.h"

namespace dkv::sdk {

/// Messages in the order of their arrival; then, at most once, the reason why no more will come.
class Inbox {
public:
    /// `words_max`: the most that messages may have in all (answers.h).
    explicit Inbox(std::uint64_t words_max) : words_max_(words_max) {}

    void put(wire::BodyUnion message) {
        {
            std::lock_guard const lock(mutex_);
            if (end_) return;
            words_ += words_of(message);
            if (words_ > words_max_)
                end_ = corrupt_answer("said more of this session than there is to say: over " +
                                      std::to_string(words_max_) + " words");
            else
                messages_.push_back(std::move(message));
        }
        news_.notify_one();
    }
    /// The first reason stands.
    void end(Error reason) {
        {
            std::lock_guard const lock(mutex_);
            if (!end_) end_ = std::move(reason);
        }
        news_.notify_one();
    }

    std::deque<wire::BodyUnion> take() {
        std::lock_guard const lock(mutex_);
        return std::exchange(messages_, {});
    }
    std::optional<Error> ended() const {
        std::lock_guard const lock(mutex_);
        return end_;
    }
    /// Until there is a message or an end. False: the deadline passed first.
    bool wait(Deadline deadline) {
        std::unique_lock lock(mutex_);
        return news_.wait_until(lock, deadline, [&] { return !messages_.empty() || end_; });
    }

private:
    std::uint64_t const words_max_;
    std::uint64_t words_ = 0;
    mutable std::mutex mutex_;
    std::condition_variable news_;
    std::deque<wire::BodyUnion> messages_;
    std::optional<Error> end_;
};

}  // namespace dkv::sdk
