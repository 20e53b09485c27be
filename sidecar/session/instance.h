// One attached engine.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>

#include "protocol/base/unique_fd.h"
#include "sidecar/memory/region_table.h"
#include "sidecar/session/backends.h"
#include "sidecar/session/facts.h"
#include "sidecar/session/session.h"
#include "sidecar/session/strand.h"

namespace dkv {

/// Everything the sidecar holds for an engine; the table decides, this only keeps.
struct Instance {
    Instance(EngineHello said,
             Peer from,
             PeerCredentials process_behind,
             Millis now,
             std::uint32_t regions_max)
        : hello(std::move(said)),
          peer(std::move(from)),
          owner(process_behind),
          attached_at(now),
          seen_at(now),
          regions(regions_max) {}

    EngineHello hello;
    Peer peer;  ///< The connection that it said hello over: its events go there, and its requests
                ///< come from there.
    PeerCredentials owner;  ///< The process behind that connection.
    Millis attached_at;
    Millis seen_at;
    /// Set before anything of it is used.
    Backends::Chosen backend;
    std::shared_ptr<EngineEvents> events = std::make_shared<EngineEvents>();
    /// It is gone, or has attached again: what its worker waits for does not come.
    std::shared_ptr<std::atomic<bool>> left = std::make_shared<std::atomic<bool>>(false);
    UniqueFd process;  ///< Its pidfd. Empty: only heartbeats tell whether it lives.
    RegionTable regions;
    std::map<std::uint64_t, Session> sessions;
    std::unique_ptr<Strand> strand;
    std::optional<PolicyRequest> policy;  ///< What an operator set.
    std::uint64_t sessions_total = 0;
    std::uint64_t sessions_failed = 0;
    std::string last_error;
    Savings savings;

    InstanceFacts facts(Millis now, ChosenPolicy chosen) const {
        return {.hello = hello,
                .alive = true,
                .attached_ms = now - attached_at,
                .idle_ms = now - seen_at,
                .sessions_open = static_cast<std::uint32_t>(sessions.size()),
                .sessions_total = sessions_total,
                .sessions_failed = sessions_failed,
                .mapped_bytes = regions.mapped_bytes(),
                .regions = regions.count(),
                .policy = std::move(chosen),
                .last_error = last_error,
                .savings = savings,
                .backend = backend.name};
    }
};

}  // namespace dkv
