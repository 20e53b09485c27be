#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "protocol/base/result.h"
#include "sidecar/session/facts.h"

namespace dkv::rpc {

/// Who wants to hear notices.
class Subscribers {
public:
    explicit Subscribers(std::uint32_t max) noexcept : max_(max) {}

    /// Twice is once. Errors: LimitExceeded.
    Result<void> add(Peer const& peer) {
        if (std::find(peers_.begin(), peers_.end(), peer) != peers_.end()) return {};
        if (peers_.size() >= max_)
            return Error{ErrorCode::LimitExceeded,
                         std::to_string(max_) + " controllers are watching, which is the limit"};
        peers_.push_back(peer);
        return {};
    }
    void remove(Peer const& peer) { std::erase(peers_, peer); }
    bool full() const noexcept { return peers_.size() >= max_; }
    std::vector<Peer> const& peers() const noexcept { return peers_; }

private:
    std::uint32_t max_;
    std::vector<Peer> peers_;
};

}  // namespace dkv::rpc
