// What a sidecar says of its engines and sessions, so that two moments can be compared.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "protocol/schema/dkv_generated.h"
#include "sidecar/session/state.h"

namespace dkv::fuzz {

struct SessionView {
    SessionState state = SessionState::Open;
    std::uint32_t layers_done = 0;
    std::uint32_t prompt_tokens = 0;
    std::string policy;
    std::vector<std::uint32_t> lengths;
    std::uint64_t bytes_kept = 0;
    std::uint64_t bytes_returned = 0;
    std::string error;

    bool operator==(SessionView const&) const = default;
};

struct InstanceView {
    bool alive = false;
    std::uint32_t generation = 0;
    std::uint32_t regions = 0;
    std::uint64_t mapped_bytes = 0;
    std::uint32_t sessions_open = 0;
    std::uint64_t sessions_total = 0;
    std::uint64_t sessions_failed = 0;
    std::uint64_t bytes_returned = 0;
    std::string policy;
    std::string policy_source;

    bool operator==(InstanceView const&) const = default;
};

/// By instance, and session.
using SessionName = std::pair<std::uint64_t, std::uint64_t>;

struct Snapshot {
    std::map<std::uint64_t, InstanceView> instances;
    std::map<SessionName, SessionView> sessions;
    /// Milliseconds since each engine was heard: not part of what is compared.
    std::map<std::uint64_t, std::uint64_t> idle_ms;

    /// nullptr: it is not known (any more).
    SessionView const* session(SessionName const& name) const {
        auto const found = sessions.find(name);
        return found == sessions.end() ? nullptr : &found->second;
    }
    bool is_alive(std::uint64_t instance) const {
        auto const found = instances.find(instance);
        return found != instances.end() && found->second.alive;
    }
};

Snapshot snapshot_of(wire::SavingsInfo const& info);

/// Whether a terminal may show it and a log may have it: short, printable UTF-8.
bool is_clean(std::string const& text);

}  // namespace dkv::fuzz
