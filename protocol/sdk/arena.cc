#include "protocol/sdk/arena.h"

#include <utility>

#include "protocol/sdk/clock.h"

namespace dkv::sdk {

Arena::Arena(std::byte* base, std::uint64_t bytes) : id_(random_id()), base_(base), bytes_(bytes) {}

void Arena::on_detach(Detach action) {
    std::lock_guard const lock(mutex_);
    on_detach_.push_back(std::move(action));
}

Result<void> Arena::check_range(std::uint64_t offset, std::uint64_t bytes) const {
    if (offset <= bytes_ && bytes <= bytes_ - offset) return {};
    return Error{ErrorCode::InvalidArgument,
                 "bytes " + std::to_string(offset) + " … +" + std::to_string(bytes) +
                     " are not inside an arena of " + std::to_string(bytes_)};
}

Result<void> Arena::detach(std::shared_ptr<void> const& memory) {
    std::vector<Detach> actions;
    {
        std::lock_guard const lock(mutex_);
        actions.swap(on_detach_);
    }
    Result<void> result;
    for (auto const& action : actions)
        if (auto detached = action(memory); !detached && result) result = std::move(detached);
    return result;
}

}  // namespace dkv::sdk
