// What is over and still shown: closed sessions and engines that went away, up to their limits.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "sidecar/config/config.h"
#include "sidecar/session/facts.h"

namespace dkv {

class History {
public:
    explicit History(Limits const& limits) noexcept : limits_(limits) {}

    void add_session(SessionFacts facts, Millis now);
    void add_instance(InstanceFacts facts, std::string line, Millis now);

    bool has_session(std::uint64_t instance, std::uint64_t session) const noexcept;
    /// Ages as of `now`; instance 0: every instance. Oldest first.
    std::vector<SessionFacts> sessions(std::uint64_t instance, Millis now) const;
    std::vector<InstanceFacts> instances(Millis now) const;
    std::vector<std::string> gone_lines() const;
    /// The engine is back: it is not gone any more. What it had saved, for its totals.
    InstanceFacts const* find_instance(std::uint64_t instance) const noexcept;
    void forget_instance(std::uint64_t instance);

private:
    struct PastSession {
        SessionFacts facts;
        Millis at;
    };
    struct PastInstance {
        InstanceFacts facts;
        std::string line;
        Millis at;
    };
    Limits limits_;
    std::deque<PastSession> sessions_;
    std::deque<PastInstance> instances_;
};

}  // namespace dkv
