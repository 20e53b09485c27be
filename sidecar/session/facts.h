// What the session table tells others: plain values, no behaviour.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/base/geometry.h"
#include "sidecar/metrics/stages.h"
#include "sidecar/pipeline/job.h"
#include "sidecar/policy/params.h"
#include "sidecar/session/state.h"

namespace dkv {

/// Milliseconds of a clock that only goes forward. The table never asks for the time itself.
using Millis = std::uint64_t;

/// The transport's name for the sender of a message.
using Peer = std::string;

struct Savings {
    std::uint64_t sessions = 0;
    std::uint64_t sessions_failed = 0;
    std::uint64_t prompt_tokens = 0;
    std::uint64_t bytes_full = 0;
    std::uint64_t bytes_dropped = 0;      ///< Logically: full less kept.
    std::uint64_t bytes_returned = 0;     ///< What engines saw the system take back.
    std::uint64_t bytes_pool = 0;         ///< Of blocks that went back to engines' own pools.
    std::uint64_t bytes_block_table = 0;  ///< What one block table for all layers would give back.
    std::uint64_t bytes_peak = 0;         ///< The largest of any session.
    std::uint64_t busy_ns = 0;
    std::uint64_t wait_ns = 0;
};

struct SessionFacts {
    std::uint64_t instance = 0;
    std::uint64_t session = 0;
    SessionState state = SessionState::Open;
    PolicyParams policy;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t layers_done = 0;
    std::uint32_t layers = 0;
    std::uint32_t kv_heads = 0;
    std::vector<std::uint32_t> lengths;  ///< [layers, kv_heads]; 0 where a layer has not come yet.
    std::vector<float> mass_kept;        ///< [layers], or empty.
    std::uint64_t bytes_full = 0;
    std::uint64_t bytes_kept = 0;
    std::uint64_t bytes_block_table = 0;
    std::uint64_t bytes_returned = 0;
    std::uint64_t bytes_peak = 0;
    std::uint64_t bytes_final = 0;
    std::uint64_t bytes_pool = 0;
    std::uint64_t busy_ns = 0;
    std::uint64_t wait_ns = 0;  ///< For the engine's events, apart from that.
    Millis age_ms = 0;
    std::string error;
    std::vector<Span> spans = {};  ///< Empty where they were not asked for.
};

/// Where a policy came from.
enum class PolicySource : std::uint8_t { Default, All, Instance };

constexpr std::string_view name_of(PolicySource source) noexcept {
    switch (source) {
        case PolicySource::Default: return "default";
        case PolicySource::All: return "all";
        case PolicySource::Instance: return "instance";
    }
    return "unknown";
}

struct ChosenPolicy {
    PolicyParams params;
    PolicySource source = PolicySource::Default;
};

/// What an engine says about itself.
struct EngineHello {
    std::uint64_t instance = 0;
    std::uint32_t generation = 0;
    std::uint64_t group = 0;
    std::uint32_t pid = 0;
    std::string engine;
    std::string model;
    std::string device;
    Geometry geometry;
};

struct InstanceFacts {
    EngineHello hello;
    bool alive = true;
    Millis attached_ms = 0;  ///< Since it attached.
    Millis idle_ms = 0;      ///< Since its last message.
    std::uint32_t sessions_open = 0;
    std::uint64_t sessions_total = 0;
    std::uint64_t sessions_failed = 0;
    std::uint64_t mapped_bytes = 0;
    std::uint32_t regions = 0;
    ChosenPolicy policy;
    std::string last_error;
    Savings savings;
    std::string backend;
};

struct TableFacts {
    std::string backend;
    std::string backend_note;  ///< Why there is no GPU in it; empty: there is one.
    unsigned threads = 0;
    ChosenPolicy policy;
    std::uint32_t instances = 0;
    std::uint32_t sessions_open = 0;
    std::uint64_t errors_total = 0;
    std::string last_error;
    Savings savings;
    std::uint64_t mapped_bytes = 0;
    std::vector<std::string> gone;  ///< The last engines that went away, a line each.
    bool draining = false;
};

enum class NoticeKind : std::uint8_t {
    InstanceAttached,
    InstanceGone,
    SessionOpened,
    Layer,
    SessionCommitted,
    SessionAdopted,
    SessionClosed,
    SessionFailed,
    PolicySet,
    Stopping
};

/// The names that subscribers see.
constexpr std::string_view name_of(NoticeKind kind) noexcept {
    switch (kind) {
        case NoticeKind::InstanceAttached: return "instance_attached";
        case NoticeKind::InstanceGone: return "instance_gone";
        case NoticeKind::SessionOpened: return "session_opened";
        case NoticeKind::Layer: return "layer";
        case NoticeKind::SessionCommitted: return "session_committed";
        case NoticeKind::SessionAdopted: return "session_adopted";
        case NoticeKind::SessionClosed: return "session_closed";
        case NoticeKind::SessionFailed: return "session_failed";
        case NoticeKind::PolicySet: return "policy_set";
        case NoticeKind::Stopping: return "stopping";
    }
    return "unknown";
}

struct Notice {
    NoticeKind kind = NoticeKind::Stopping;
    std::uint64_t instance = 0;
    std::uint64_t session = 0;
    std::string text;  ///< One line for people.
    std::optional<SessionFacts> detail;
};

/// Nanoseconds that a worker spent on a session, so far.
struct SpentTime {
    std::uint64_t busy = 0;
    std::uint64_t waiting = 0;  ///< For the engine's events.
};

/// Who asked for what is answered later.
struct Asker {
    Peer peer;
    std::uint64_t request = 0;
    std::uint64_t instance = 0;
    char const* name = "";  ///< Of the request.
};

/// Who hears what becomes of sessions. Called by the loop's thread.
class Listener {
public:
    virtual ~Listener() = default;
    virtual void layer_progress(Peer const& engine,
                                std::uint64_t session,
                                LayerProgress const& progress) = 0;
    virtual void planned(Peer const& engine,
                         std::uint64_t session,
                         std::vector<std::uint32_t> const& lengths) = 0;
    virtual void committed(Peer const& engine,
                           std::uint64_t session,
                           JobOutcome const& outcome,
                           SpentTime spent) = 0;
    virtual void session_failed(Peer const& engine, std::uint64_t session, Error const& error) = 0;
    /// The answers that had to wait for a worker.
    virtual void region_registered(Asker const& asker, Result<std::uint64_t> const& region) = 0;
    virtual void done(Asker const& asker, Result<void> const& result) = 0;
    virtual void notice(Notice const& notice) = 0;
};

/// "0x" and 16 hexadecimal digits: how people see an instance or a session, in logs of engines, in
/// the sidecar's and in `dkv`.
std::string id_name(std::uint64_t id);

}  // namespace dkv
