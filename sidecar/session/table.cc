// Engines: attaching, memory, dying; operators' policies. Sessions are in table_sessions.cc.
#include "sidecar/session/table.h"

#include <algorithm>
#include <thread>

#include <spdlog/spdlog.h>

#include "protocol/base/geometry.h"
#include "protocol/base/printable.h"
#include "sidecar/metrics/log_scope.h"
#include "sidecar/policy/policy.h"

namespace dkv {
namespace {

constexpr std::uint32_t kHeartbeatsMissedMax = 10;

}  // namespace

Table::Table(Config const& config,
             Metrics& metrics,
             Listener& listener,
             Backends backends,
             std::function<void()> wake)
    : config_(config),
      metrics_(metrics),
      listener_(listener),
      backends_(std::move(backends)),
      history_(config.limits),
      reports_(std::move(wake)) {}

Table::~Table() {
    // Every worker is told before any is waited for.
    for (auto& [id, instance] : instances_) {
        *instance.left = true;
        descriptors_.forget(id);
        for (auto& [number, session] : instance.sessions)
            session.close(*instance.strand);
        instance.strand->stop();
    }
}

Result<Instance*> Table::find(Caller const& caller, std::uint64_t instance) {
    auto const found = instances_.find(instance);
    if (found == instances_.end())
        return Error{ErrorCode::UnknownInstance,
                     "no engine " + id_name(instance) + " is attached: it has to say hello"};
    if (found->second.peer != caller.peer)
        return Error{ErrorCode::PermissionDenied,
                     "engine " + id_name(instance) +
                         " is attached over another connection: it has to say hello over this one"};
    found->second.seen_at = caller.now;
    return &found->second;
}

Result<Welcomed> Table::hello(Caller const& caller, EngineHello hello) {
    if (hello.instance == 0)
        return Error{ErrorCode::InvalidArgument, "instance 0 is nobody: choose a random number"};
    DKV_TRY(check(hello.geometry));
    if (std::uint64_t{hello.geometry.layers} * hello.geometry.kv_heads >
        config_.limits.heads_total_max)
        return Error{ErrorCode::LimitExceeded,
                     "the model has " + describe(hello.geometry) + ": more KV heads in all than " +
                         std::to_string(config_.limits.heads_total_max) + ", the limit"};
    if (!caller.process)
        return Error{ErrorCode::PermissionDenied,
                     "the kernel does not say which process this engine is: engines attach over "
                     "ipc:// alone"};
    // What the message says is the engine's own view: in a pid namespace that is another process.
    hello.pid = static_cast<std::uint32_t>(caller.process->pid);
    for (auto* const text : {&hello.engine, &hello.model, &hello.device})
        *text = printable(*text, config_.limits.text_bytes_max);

    if (instances_.contains(hello.instance)) {
        Instance& known = instances_.at(hello.instance);
        if (known.owner != *caller.process)
            return Error{ErrorCode::PermissionDenied,
                         "engine " + id_name(hello.instance) +
                             " belongs to another process: choose another random number"};
        if (hello.generation < known.hello.generation)
            return Error{ErrorCode::BadState, "generation " + std::to_string(hello.generation) +
                                                  " of engine " + id_name(hello.instance) +
                                                  " comes after generation " +
                                                  std::to_string(known.hello.generation)};
        if (hello.generation > known.hello.generation)
            DKV_TRY(reattach(known, std::move(hello), caller));
        known.peer = caller.peer;
        known.seen_at = caller.now;
        return Welcomed{choose(&known), known.backend.name};
    }
    DKV_TRY(check_not_draining());
    if (instances_.size() >= config_.limits.instances_max)
        return Error{ErrorCode::LimitExceeded, std::to_string(instances_.size()) +
                                                   " engines are attached, which is the limit"};

    auto const of_process =
        std::count_if(instances_.begin(), instances_.end(),
                      [&](auto const& other) { return other.second.owner == *caller.process; });
    if (of_process >= config_.limits.instances_per_process_max)
        return Error{ErrorCode::LimitExceeded, "process " + std::to_string(caller.process->pid) +
                                                   " has " + std::to_string(of_process) +
                                                   " engines attached, which is the limit"};

    auto backend = DKV_TRY(backends_.for_engine(hello.device));
    // First of all, since there may be no thread for it.
    auto strand = std::make_unique<Strand>(backend.make);
    std::uint64_t const id = hello.instance;
    Instance& added = instances_
                          .try_emplace(id, std::move(hello), caller.peer, *caller.process,
                                       caller.now, config_.limits.regions_max)
                          .first->second;
    if (auto const* const before = history_.find_instance(id)) {
        added.savings = before->savings;
        added.sessions_total = before->sessions_total;
        added.sessions_failed = before->sessions_failed;
        history_.forget_instance(id);
    }
    added.process = deaths_.watch(added.hello.pid, id);
    added.backend = std::move(backend);
    added.strand = std::move(strand);
    LogScope const scope(id);
    auto const line = fmt::format("pid {}, {}, {}, {}", added.hello.pid, added.hello.engine,
                                  added.hello.model, describe(added.hello.geometry));
    log_.say(spdlog::level::info, "attached", caller.now,
             fmt::format("attached: {}; {}", line, added.backend.name));
    tell(NoticeKind::InstanceAttached, added, line);
    update_gauges();
    return Welcomed{choose(&added), added.backend.name};
}

Result<void> Table::reattach(Instance& instance, EngineHello hello, Caller const& caller) {
    auto backend = DKV_TRY(backends_.for_engine(hello.device));
    // Another device is another worker. There may be no thread for it: nothing has changed yet.
    auto strand =
        hello.device == instance.hello.device ? nullptr : std::make_unique<Strand>(backend.make);
    // Nothing is refused from here on; what ends is told over the new connection.
    auto const now = caller.now;
    instance.peer = caller.peer;
    while (!instance.sessions.empty()) {
        Session& session = instance.sessions.begin()->second;
        fail_session(instance, session, {ErrorCode::UnknownInstance, "the engine attached again"},
                     now);
        end_session(instance, instance.sessions.begin()->first, now);
    }
    release_regions(instance);
    if (strand != nullptr) {
        instance.strand->stop();
        retired_.push_back(std::exchange(instance.strand, std::move(strand)));
        instance.backend = std::move(backend);
    }
    instance.hello = std::move(hello);
    instance.process = deaths_.watch(instance.hello.pid, instance.hello.instance);
    LogScope const scope(instance.hello.instance);
    log_.say(spdlog::level::info, "attached again", now,
             fmt::format("attached again, generation {}", instance.hello.generation));
    update_gauges();
    return {};
}

Result<void> Table::goodbye(Caller const& caller, std::uint64_t instance) {
    DKV_TRY(find(caller, instance));
    drop_instance(instance, "said goodbye", caller.now);
    return {};
}

Result<void> Table::heartbeat(Caller const& caller, std::uint64_t instance) {
    DKV_TRY(find(caller, instance));
    return {};
}

Result<void> Table::detach(Caller const& caller, std::uint64_t instance) {
    if (!instances_.contains(instance))
        return Error{ErrorCode::NotFound, "no engine " + id_name(instance) + " is attached"};
    drop_instance(instance, "was detached", caller.now);
    return {};
}

void Table::drop_instance(std::uint64_t id, std::string const& why, Millis now) {
    auto const found = instances_.find(id);
    if (found == instances_.end()) return;
    Instance& instance = found->second;
    auto const open = instance.sessions.size();
    while (!instance.sessions.empty()) {
        Session& session = instance.sessions.begin()->second;
        if (session.fail("the engine " + why)) {
            ++instance.sessions_failed;
            ++instance.savings.sessions_failed;
            ++savings_.sessions_failed;
            metrics_.session(session.policy(), "failed");
            metrics_.fail_open("engine_gone");
        }
        end_session(instance, instance.sessions.begin()->first, now);
    }
    // The worker may be in the middle of a kernel: its leases keep that memory until it is through.
    release_regions(instance);
    instance.strand->stop();
    retired_.push_back(std::move(instance.strand));

    auto facts = instance.facts(now, choose(&instance));
    facts.alive = false;
    auto const line =
        fmt::format("{} (pid {}, {}, {}) {}; {} open sessions dropped", id_name(id),
                    facts.hello.pid, facts.hello.engine, facts.hello.model, why, open);
    LogScope const scope(id);
    log_.say(spdlog::level::info, "engine gone", now,
             fmt::format("gone, pid {}: {}; {} open sessions dropped", facts.hello.pid, why, open));
    tell(NoticeKind::InstanceGone, instance, line);
    instances_.erase(found);
    history_.add_instance(std::move(facts), line, now);
    update_gauges();
}

void Table::tick(Millis now) {
    Millis const silence_max = Millis{config_.heartbeat_ms} * kHeartbeatsMissedMax;
    std::vector<std::uint64_t> silent;
    for (auto const& [id, instance] : instances_)
        if (now - instance.seen_at > silence_max) silent.push_back(id);
    for (auto const id : silent)
        drop_instance(id, fmt::format("was silent for {} ms", silence_max), now);
    std::erase_if(retired_, [](auto const& strand) { return strand->finished(); });
    descriptors_.expire();
    update_gauges();
    log_.tick(now);
}

ChosenPolicy Table::choose(Instance const* instance) const {
    // They were resolved when they were set, so they resolve now.
    if (instance != nullptr && instance->policy)
        return {resolve_or_default(*instance->policy, instance->hello.model).value(),
                PolicySource::Instance};
    auto const model = instance == nullptr ? std::string() : instance->hello.model;
    if (all_policy_) return {resolve_or_default(*all_policy_, model).value(), PolicySource::All};
    return {resolve(config_.policy, model).value(), PolicySource::Default};
}

/// For a session. An operator's setting goes before the engine's wish, but for the profile: that
/// belongs to the model, whoever chose the size. A profile that came without a name, or with auto,
/// was found and not asked for: it stays with policies that look for one, so that an operator who
/// names dynamickv gets the paper's rule.
Result<ChosenPolicy> Table::choose(Instance const& instance,
                                   std::optional<PolicyRequest> const& wish) const {
    auto const& set = instance.policy ? instance.policy : all_policy_;
    if (!wish) return choose(&instance);
    auto const takes_found = [this](std::string const& name) {
        if (!name.empty()) return takes_own_profile(name);
        return !config_.policy.profile && takes_own_profile(config_.policy.name);
    };
    if (!set) {
        PolicyRequest own = *wish;
        if (own.name.empty() && !takes_found(own.name)) own.profile = nullptr;
        return ChosenPolicy{DKV_TRY(resolve_or_default(own, instance.hello.model)),
                            PolicySource::Default};
    }
    PolicyRequest request = *set;
    bool const found = wish->name.empty() || wish->name == "auto";
    if (!request.profile && (!found || takes_found(request.name)))
        request.profile = DKV_TRY(resolve_profile(*wish));
    return ChosenPolicy{DKV_TRY(resolve_or_default(request, instance.hello.model)),
                        instance.policy ? PolicySource::Instance : PolicySource::All};
}

Result<PolicyParams> Table::resolve_or_default(PolicyRequest const& request,
                                               std::string_view model) const {
    if (!request.name.empty()) return resolve(request, model);
    // No name: the sidecar's own policy, with whatever numbers were given.
    auto merged = config_.policy;
    auto const lay_over = [](char const*, auto& field, auto const& wish) {
        if (wish) field = wish;
    };
    each_number(lay_over, merged, request);
    each_of_profile(lay_over, merged, request);
    lay_over("profile", merged.profile, request.profile);
    if (!request.preset.empty()) merged.preset = request.preset;
    if (request.capacity || request.ratio || request.bytes || request.keep_mass)
        each_size([](char const*, auto& size, auto const& wish) { size = wish; }, merged, request);
    return resolve(merged, model);
}

ChosenPolicy Table::default_policy() const {
    return choose(nullptr);
}

Result<void> Table::set_policy(std::uint64_t instance,
                               std::optional<PolicyRequest> const& request) {
    auto const found = instances_.find(instance);
    if (instance != 0 && found == instances_.end())
        return Error{ErrorCode::NotFound, "no engine " + id_name(instance) + " is attached"};
    std::string words = "default";
    if (request) {
        auto const model = instance == 0 ? std::string() : found->second.hello.model;
        auto const params = DKV_TRY(resolve_or_default(*request, model));
        if (instance != 0)
            DKV_TRY(sized(params, found->second.hello.geometry, config_.limits.tokens_max));
        words = in_words(params);
    }
    if (instance == 0)
        all_policy_ = request;
    else
        found->second.policy = request;
    auto const whose = instance == 0 ? std::string("every engine") : "engine " + id_name(instance);
    spdlog::info("policy of {}: {}", whose, words);
    listener_.notice({NoticeKind::PolicySet, instance, 0, whose + ": " + words, std::nullopt});
    return {};
}

TableFacts Table::facts() const {
    TableFacts facts{
        .backend = backends_.name(),
        .backend_note = backends_.note(),
        .threads = config_.threads == 0 ? std::thread::hardware_concurrency() : config_.threads,
        .policy = default_policy(),
        .instances = static_cast<std::uint32_t>(instances_.size()),
        .sessions_open = sessions_open(),
        .errors_total = errors_total_,
        .last_error = last_error_,
        .savings = savings_,
        .mapped_bytes = 0,
        .gone = history_.gone_lines(),
        .draining = draining_};
    for (auto const& [id, instance] : instances_)
        facts.mapped_bytes += instance.regions.mapped_bytes();
    return facts;
}

std::vector<InstanceFacts> Table::instances(Millis now) const {
    std::vector<InstanceFacts> all;
    for (auto const& [id, instance] : instances_)
        all.push_back(instance.facts(now, choose(&instance)));
    for (auto& gone : history_.instances(now))
        all.push_back(std::move(gone));
    return all;
}

void Table::count_error(std::uint64_t instance, Error const& error) {
    ++errors_total_;
    metrics_.error(name_of(error.code));
    last_error_ = error.message;
    if (auto const found = instances_.find(instance); found != instances_.end())
        found->second.last_error = error.message;
}

void Table::tell(NoticeKind kind, Instance const& instance, std::string text) {
    listener_.notice({kind, instance.hello.instance, 0, std::move(text), std::nullopt});
}

void Table::update_gauges() {
    std::uint64_t mapped = 0;
    std::size_t queued = 0;
    std::array<std::uint32_t, kSessionStates> states{};
    for (auto const& [id, instance] : instances_) {
        mapped += instance.regions.mapped_bytes();
        queued += instance.strand->queued();
        for (auto const& [number, session] : instance.sessions)
            ++states.at(static_cast<std::size_t>(session.state()));
    }
    metrics_.instances(static_cast<std::uint32_t>(instances_.size()));
    for (std::size_t state = 0; state < states.size(); ++state)
        if (auto const named = static_cast<SessionState>(state); named != SessionState::Closed)
            metrics_.sessions_open(name_of(named), states.at(state));
    metrics_.jobs_queued(queued);
    metrics_.mapped_bytes(mapped);
}

}  // namespace dkv
