#include "sidecar/session/history.h"

#include <algorithm>

namespace dkv {

void History::add_session(SessionFacts facts, Millis now) {
    sessions_.push_back({std::move(facts), now});
    while (sessions_.size() > limits_.sessions_remembered_max)
        sessions_.pop_front();
}

void History::add_instance(InstanceFacts facts, std::string line, Millis now) {
    instances_.push_back({std::move(facts), std::move(line), now});
    while (instances_.size() > limits_.gone_remembered_max)
        instances_.pop_front();
}

bool History::has_session(std::uint64_t instance, std::uint64_t session) const noexcept {
    return std::any_of(sessions_.begin(), sessions_.end(), [&](PastSession const& past) {
        return past.facts.instance == instance && past.facts.session == session;
    });
}

std::vector<SessionFacts> History::sessions(std::uint64_t instance, Millis now) const {
    std::vector<SessionFacts> found;
    for (auto const& past : sessions_) {
        if (instance != 0 && past.facts.instance != instance) continue;
        found.push_back(past.facts);
        found.back().age_ms += now - past.at;
    }
    return found;
}

std::vector<InstanceFacts> History::instances(Millis now) const {
    std::vector<InstanceFacts> found;
    for (auto const& past : instances_) {
        found.push_back(past.facts);
        found.back().attached_ms += now - past.at;
        found.back().idle_ms += now - past.at;
    }
    return found;
}

std::vector<std::string> History::gone_lines() const {
    std::vector<std::string> lines;
    for (auto const& past : instances_)
        lines.push_back(past.line);
    return lines;
}

InstanceFacts const* History::find_instance(std::uint64_t instance) const noexcept {
    auto const found = std::find_if(
        instances_.rbegin(), instances_.rend(),
        [&](PastInstance const& past) { return past.facts.hello.instance == instance; });
    return found == instances_.rend() ? nullptr : &found->facts;
}

void History::forget_instance(std::uint64_t instance) {
    std::erase_if(instances_,
                  [&](PastInstance const& past) { return past.facts.hello.instance == instance; });
}

}  // namespace dkv
