// What engines lend: shared memory, mapped at once, and what needs their device, opened and closed
// by their worker.
#include <algorithm>

#include "sidecar/memory/device_region.h"
#include "sidecar/session/table.h"

namespace dkv {
namespace {

constexpr std::size_t kEventsMax = 4096;

/// Waits for what is queued, then lets go of it: in the worker's thread.
template <class Held>
Strand::Work let_go(Held held) {
    return [held = std::make_shared<Held>(std::move(held))](Backend& backend) {
        static_cast<void>(backend.synchronize());
        *held = Held();
    };
}

/// A descriptor is one of the engine's own: whose, the kernel says, and never the message.
Result<RegionSource> of_process(RegionSource source, pid_t pid) {
    auto* const memfd = std::get_if<MemfdSource>(&source);
    if (memfd == nullptr) return source;
    if (pid == 0)
        return Error{ErrorCode::Unsupported,
                     describe(source) +
                         ": the engine is in a pid namespace that this sidecar cannot see; "
                         "DKV_ARENA=posix_shm shares memory by name"};
    memfd->pid = static_cast<std::uint32_t>(pid);
    return source;
}

Error not_on_cpu(RegionSource const& source) {
    return {ErrorCode::Unsupported,
            describe(source) + ": this engine said that its cache is on the cpu"};
}

}  // namespace

Result<std::variant<std::uint64_t, Later>> Table::register_region(Caller const& caller,
                                                                  std::uint64_t instance,
                                                                  RegionSource const& source,
                                                                  std::uint64_t bytes,
                                                                  bool writable) {
    using Answer = std::variant<std::uint64_t, Later>;
    Instance& engine = *DKV_TRY(find(caller, instance));
    DKV_TRY(check_regions_in_all());
    if (!is_device_memory(source)) {
        auto const region =
            DKV_TRY(engine.regions.add(DKV_TRY(of_process(source, engine.owner.pid)), bytes,
                                       writable, descriptors_left(engine)));
        update_gauges();
        return Answer(region);
    }
    if (engine.backend.place == Place::Host) return not_on_cpu(source);
    if (engine.regions.count() >= config_.limits.regions_max)
        return Error{ErrorCode::LimitExceeded, "this engine has " +
                                                   std::to_string(engine.regions.count()) +
                                                   " regions, which is the limit"};
    DKV_TRY(check_queue(engine));
    Asker const asker{caller.peer, caller.request, instance, "RegisterRegion"};
    RegionOwner const owner{instance, engine.hello.generation};
    engine.strand->post([=, this, left = engine.left](Backend& backend) {
        // A backend that could not be made says so here.
        auto const ready = backend.synchronize();
        auto region = ready ? open_region(source, bytes, writable, owner, descriptors_, *left)
                            : Result<RegionLease>(ready.error());
        reports_.post({.instance = owner.instance,
                       .generation = owner.generation,
                       .session = 0,
                       .spent = {},
                       .what = RegionOpened{asker, std::move(region)}});
    });
    return Answer(Later{});
}

void Table::apply(RegionOpened& opened, WorkReport const& report) {
    auto const found = instances_.find(report.instance);
    if (found == instances_.end() || found->second.hello.generation != report.generation)
        return listener_.region_registered(
            opened.asker, Error{ErrorCode::UnknownInstance, "the engine went away meanwhile"});
    if (!opened.region) return listener_.region_registered(opened.asker, opened.region.error());
    auto const region = found->second.regions.add(std::move(opened.region).value());
    update_gauges();
    listener_.region_registered(opened.asker, region);
}

Result<std::variant<Done, Later>> Table::unregister_region(Caller const& caller,
                                                           std::uint64_t instance,
                                                           std::uint64_t region) {
    using Answer = std::variant<Done, Later>;
    Instance& engine = *DKV_TRY(find(caller, instance));
    auto lease = DKV_TRY(engine.regions.remove(region));
    update_gauges();
    if (lease == nullptr || lease->place() == Place::Host) return Answer(Done{});
    WorkReport report;
    report.instance = instance;
    report.generation = engine.hello.generation;
    report.what = RequestDone{{caller.peer, caller.request, instance, "UnregisterRegion"}, {}};
    lease->when_closed([this, report] { reports_.post(report); });
    engine.strand->post(let_go(std::move(lease)));
    return Answer(Later{});
}

Result<Later> Table::register_events(Caller const& caller,
                                     std::uint64_t instance,
                                     std::vector<cuda::EventHandle> handles) {
    Instance& engine = *DKV_TRY(find(caller, instance));
    if (engine.backend.place == Place::Host)
        return Error{ErrorCode::Unsupported, "an engine on the cpu has no events"};
    if (handles.size() > kEventsMax)
        return Error{
            ErrorCode::LimitExceeded,
            std::to_string(handles.size()) + " events; the limit is " + std::to_string(kEventsMax)};
    DKV_TRY(check_queue(engine));
    Asker const asker{caller.peer, caller.request, instance, "RegisterEvents"};
    engine.strand->post([=, this, events = engine.events](Backend& backend) {
        auto opened = [&]() -> Result<void> {
            DKV_TRY(backend.synchronize());
            // The old ones first: the engine may have destroyed them.
            events->opened.reset();
            if (!handles.empty()) events->opened = DKV_TRY(cuda::open_events(handles));
            return {};
        }();
        reports_.post({.instance = asker.instance,
                       .generation = 0,
                       .session = 0,
                       .spent = {},
                       .what = RequestDone{asker, std::move(opened)}});
    });
    return Later{};
}

/// Each is a mapping, of which a process has a bounded number: its own threads and memory need
/// some.
Result<void> Table::check_regions_in_all() const {
    std::size_t in_all = 0;
    for (auto const& [id, instance] : instances_)
        in_all += instance.regions.count();
    if (in_all < config_.limits.regions_in_all_max) return {};
    return Error{ErrorCode::LimitExceeded, "engines have " + std::to_string(in_all) +
                                               " regions registered, which is the limit"};
}

/// For regions of this engine, its own included.
std::uint32_t Table::descriptors_left(Instance const& engine) const {
    std::uint32_t others = 0;
    for (auto const& [id, instance] : instances_)
        if (&instance != &engine) others += instance.regions.descriptors();
    auto const in_all = config_.limits.region_descriptors_max;
    return std::min(config_.limits.region_descriptors_per_engine_max,
                    in_all - std::min(in_all, others));
}

Result<void> Table::check_queue(Instance const& instance) const {
    if (instance.strand->queued() < config_.limits.jobs_queued_max) return {};
    return Error{ErrorCode::LimitExceeded, "this engine has " +
                                               std::to_string(config_.limits.jobs_queued_max) +
                                               " requests waiting, which is the limit"};
}

void Table::release_regions(Instance& instance) {
    *instance.left = true;
    descriptors_.forget(instance.hello.instance);
    // Of this instance as it was: what comes later is another's.
    instance.left = std::make_shared<std::atomic<bool>>(false);
    auto regions = std::exchange(instance.regions, RegionTable(config_.limits.regions_max));
    auto events = std::exchange(instance.events, std::make_shared<EngineEvents>());
    if (instance.backend.place == Place::Host) return;
    struct Held {
        std::shared_ptr<RegionTable> regions;
        std::shared_ptr<EngineEvents> events;
    };
    instance.strand->post(
        let_go(Held{std::make_shared<RegionTable>(std::move(regions)), std::move(events)}));
}

}  // namespace dkv
