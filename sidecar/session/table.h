// Every engine, session and lease: the only mutable state of the sidecar. One thread, the loop's,
// calls it; workers leave reports that finish_work() takes.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "protocol/base/peer.h"
#include "sidecar/config/config.h"
#include "sidecar/memory/descriptors.h"
#include "sidecar/metrics/log_limit.h"
#include "sidecar/metrics/metrics.h"
#include "sidecar/session/death_watch.h"
#include "sidecar/session/facts.h"
#include "sidecar/session/history.h"
#include "sidecar/session/instance.h"

namespace dkv {

/// Who calls, and when.
struct Caller {
    Peer peer;
    Millis now = 0;
    std::uint64_t request = 0;  ///< For an answer that comes later.
    /// As the kernel tells it; nothing: it came over TCP, and is a controller at most.
    std::optional<PeerCredentials> process = {};
};

/// What an engine is told when it attaches.
struct Welcomed {
    ChosenPolicy policy;
    std::string backend;
};

/// The answer comes later, through the listener.
struct Later {};

struct OpenRequest {
    std::uint64_t session = 0;
    std::uint32_t prompt_tokens = 0;
    bool progressive = true;
    std::optional<PolicyRequest> wish = {};
    std::uint32_t row_multiple = 0;  ///< 0: kept rows are not rounded.
    std::uint32_t row_offset = 0;
    bool uniform = false;
    bool rope_interleaved = false;  ///< The engine's keys; false: they are as the surrogate's.
};

struct OpenedSession {
    PolicyParams policy;
    JobNeeds needs;
};

struct SessionQuery {
    std::uint64_t instance = 0;  ///< 0: every one.
    std::uint64_t session = 0;   ///< 0: every one.
    bool spans = false;
};

class Table {
public:
    /// `config` has passed check(). `wake` makes the loop call finish_work(), from any thread.
    Table(Config const& config,
          Metrics& metrics,
          Listener& listener,
          Backends backends,
          std::function<void()> wake);
    /// Waits for the workers, then lets go of every engine's memory.
    ~Table();

    // ------------------------------------------------------------------------------- engines
    // Errors of all that name an instance: UnknownInstance when it is not attached (any more).

    /// The policy that its sessions get unless they ask for another. A repeated hello changes
    /// nothing; one of a later generation drops what the earlier one had. Errors: InvalidArgument;
    /// BadState for an earlier generation; LimitExceeded; Unsupported for a device that is not
    /// here.
    Result<Welcomed> hello(Caller const& caller, EngineHello hello);
    /// Shared memory is mapped at once; what needs the engine's device, by its worker.
    Result<std::variant<std::uint64_t, Later>> register_region(Caller const& caller,
                                                               std::uint64_t instance,
                                                               RegionSource const& source,
                                                               std::uint64_t bytes,
                                                               bool writable);
    /// Of device memory, answered when it is closed: its owner may free it then.
    Result<std::variant<Done, Later>> unregister_region(Caller const& caller,
                                                        std::uint64_t instance,
                                                        std::uint64_t region);
    /// In place of those before. Errors: InvalidArgument; Unsupported on a CPU; LimitExceeded.
    Result<Later> register_events(Caller const& caller,
                                  std::uint64_t instance,
                                  std::vector<cuda::EventHandle> handles);
    /// Errors: those of resolve(); InvalidArgument; AlreadyExists; LimitExceeded; Unsupported when
    /// the engine's device is lost.
    Result<OpenedSession> open_session(Caller const& caller,
                                       std::uint64_t instance,
                                       OpenRequest const& request);
    Result<void> bind_buffers(Caller const& caller,
                              std::uint64_t instance,
                              std::uint64_t session,
                              std::uint64_t staging,
                              std::uint64_t destination);
    Result<void> layer_ready(Caller const& caller,
                             std::uint64_t instance,
                             std::uint64_t session,
                             LayerRequest const& request);
    Result<void> adopted(Caller const& caller,
                         std::uint64_t instance,
                         std::uint64_t session,
                         AdoptedBytes const& bytes);
    /// A session that is not open (any more): nothing happens.
    Result<void> close_session(Caller const& caller,
                               std::uint64_t instance,
                               std::uint64_t session,
                               std::string const& reason);
    Result<void> goodbye(Caller const& caller, std::uint64_t instance);
    Result<void> heartbeat(Caller const& caller, std::uint64_t instance);
    /// An operator's: lets go of what the engine lent. If it lives, it attaches again.
    /// Errors: NotFound.
    Result<void> detach(Caller const& caller, std::uint64_t instance);

    // ------------------------------------------------------------------------------- operators

    /// instance 0: every instance, present and future. Nothing: back to the default.
    /// Errors: NotFound for an instance or a policy; InvalidArgument.
    Result<void> set_policy(std::uint64_t instance, std::optional<PolicyRequest> const& request);
    ChosenPolicy default_policy() const;

    /// From now on no engine attaches and no session opens.
    void drain() noexcept { draining_ = true; }
    /// Sessions whose cache is still being made, or waits for its engine to adopt it.
    std::uint32_t sessions_in_work() const noexcept;
    /// For engines and sessions that come from now on.
    void reconfigure(Config const& config) { config_ = config; }

    TableFacts facts() const;
    /// The attached ones, then those that went away.
    std::vector<InstanceFacts> instances(Millis now) const;
    /// Open ones, then closed ones that are remembered. Errors: NotFound for an instance.
    Result<std::vector<SessionFacts>> sessions(SessionQuery query, Millis now) const;

    // ------------------------------------------------------------------------------- the loop

    /// Takes what the workers have finished, and the engines whose process has ended.
    void finish_work(Millis now);
    /// Drops the engines that were silent for ten heartbeats: a lease that every message renews.
    /// One that lives after all attaches again.
    void tick(Millis now);
    /// Readable when finish_work() should be called because an engine died.
    int death_fd() const noexcept { return deaths_.fd(); }
    /// Where the descriptors go that engines send. Any thread may put one there.
    Descriptors& descriptors() noexcept { return descriptors_; }
    /// Remembers that a request failed. instance 0: no engine's.
    void count_error(std::uint64_t instance, Error const& error);

private:
    Result<Instance*> find(Caller const& caller, std::uint64_t instance);
    Result<Session*> find(Instance& instance, std::uint64_t session);
    Result<OpenedSession> try_open(Caller const& caller,
                                   std::uint64_t instance,
                                   OpenRequest const& request);
    ChosenPolicy choose(Instance const* instance) const;
    Result<ChosenPolicy> choose(Instance const& instance,
                                std::optional<PolicyRequest> const& wish) const;
    Result<PolicyParams> resolve_or_default(PolicyRequest const& request,
                                            std::string_view model) const;
    std::uint32_t sessions_open() const noexcept;
    Result<void> check_not_draining() const;

    Result<void> reattach(Instance& instance, EngineHello hello, Caller const& caller);
    void release_regions(Instance& instance);
    Result<void> check_queue(Instance const& instance) const;
    Result<void> check_regions_in_all() const;
    std::uint32_t descriptors_left(Instance const& engine) const;
    void drop_instance(std::uint64_t id, std::string const& why, Millis now);
    void end_session(Instance& instance, std::uint64_t session, Millis now);
    void fail_session(Instance& instance, Session& session, Error const& why, Millis now);
    void apply(WorkReport& report, Millis now);
    void apply(RegionOpened& opened, WorkReport const& report);
    void apply(DeviceLost const& lost, std::uint64_t instance, Millis now);
    /// After an error of a device, asks whether that was its last.
    void look_after_device(WorkReport const& report);
    void tell_commit(Instance& instance, Session& session, WorkReport const& report, Millis now);
    void tell(NoticeKind kind, Instance const& instance, std::string text);
    void tell(NoticeKind kind, Session const& session, std::string text, Millis now);
    void update_gauges();

    Config config_;
    Metrics& metrics_;
    Listener& listener_;
    Backends backends_;
    Descriptors descriptors_;
    std::optional<PolicyRequest> all_policy_;
    DeathWatch deaths_;
    History history_;
    WorkReports reports_;
    std::vector<std::unique_ptr<Strand>>
        retired_;  ///< Of dropped engines, until they have finished.
    std::map<std::uint64_t, Instance> instances_;
    LogLimit log_;
    std::uint64_t errors_total_ = 0;
    std::string last_error_;
    Savings savings_;
    bool draining_ = false;
};

}  // namespace dkv
