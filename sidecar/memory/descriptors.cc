#include "sidecar/memory/descriptors.h"

#include <limits>
#include <string>

namespace dkv {

Result<void> Descriptors::put(std::uint64_t instance, std::uint64_t ticket, UniqueFd file) {
    if (ticket == 0)
        return Error{ErrorCode::InvalidArgument, "ticket 0 is none: choose another number"};
    {
        std::lock_guard const lock(mutex_);
        auto const begin = waiting_.lower_bound({instance, 0});
        auto const end =
            waiting_.upper_bound({instance, std::numeric_limits<std::uint64_t>::max()});
        auto const of_instance = static_cast<std::size_t>(std::distance(begin, end));
        if (waiting_.size() >= limits_.most || of_instance >= limits_.most_per_instance)
            return Error{ErrorCode::LimitExceeded,
                         std::to_string(of_instance) + " descriptors of this engine wait, " +
                             std::to_string(waiting_.size()) + " in all, which is the limit"};
        auto const [at, is_new] = waiting_.try_emplace({instance, ticket});
        if (!is_new)
            return Error{ErrorCode::AlreadyExists,
                         "a descriptor with ticket " + std::to_string(ticket) + " waits already"};
        at->second = {std::move(file), Clock::now()};
    }
    came_.notify_all();
    return {};
}

Result<UniqueFd> Descriptors::take(std::uint64_t instance,
                                   std::uint64_t ticket,
                                   std::atomic<bool> const& cancelled) {
    std::unique_lock lock(mutex_);
    auto found = waiting_.end();
    came_.wait_for(lock, limits_.waited_for, [&] {
        found = waiting_.find({instance, ticket});
        return found != waiting_.end() || cancelled;
    });
    if (found == waiting_.end())
        return Error{cancelled ? ErrorCode::Cancelled : ErrorCode::NotFound,
                     "no descriptor with ticket " + std::to_string(ticket) + " came"};
    UniqueFd file = std::move(found->second.file);
    waiting_.erase(found);
    return file;
}

void Descriptors::forget(std::uint64_t instance) {
    {
        std::lock_guard const lock(mutex_);
        std::erase_if(waiting_, [&](auto const& one) { return one.first.first == instance; });
    }
    came_.notify_all();
}

void Descriptors::expire(Clock::time_point now) {
    std::lock_guard const lock(mutex_);
    std::erase_if(waiting_, [&](auto const& one) { return now - one.second.since > limits_.kept; });
}

std::size_t Descriptors::count() const {
    std::lock_guard const lock(mutex_);
    return waiting_.size();
}

}  // namespace dkv
