#include "protocol/sdk/engine.h"

#include <unistd.h>
#include <utility>

#include "protocol/base/endpoint.h"
#include "protocol/sdk/convert.h"

namespace dkv::sdk {

Result<std::shared_ptr<Engine>> Engine::open(EngineOptions options) {
    DKV_TRY(check_endpoint(options.endpoint));
    DKV_TRY(check(options.geometry));

    auto const instance = random_id();
    wire::HelloT hello;
    hello.instance = instance;
    hello.group = options.group;
    hello.pid = static_cast<std::uint32_t>(::getpid());
    hello.engine = options.engine;
    hello.model = options.model;
    hello.device = options.device;
    hello.geometry = std::make_unique<wire::GeometryT>(wire_of(options.geometry));

    std::shared_ptr<Engine> engine(new Engine(std::move(options), instance));
    engine->connection_ = DKV_TRY(
        Connection::open(engine->options_.endpoint, std::move(hello), engine->options_.timeout));
    return engine;
}

Engine::Engine(EngineOptions options, std::uint64_t instance)
    : options_(std::move(options)), instance_(instance), owner_(::getpid()) {}

bool Engine::is_own_process() const noexcept {
    return owner_ == ::getpid();
}

Result<std::uint64_t> Engine::region_of(std::shared_ptr<Arena> const& arena,
                                        bool writable,
                                        std::uint64_t epoch,
                                        Deadline deadline) {
    if (auto const known = known_region(arena->id(), epoch)) return *known;
    std::unique_lock const registering(arena->registering(), deadline);
    if (!registering.owns_lock())
        return Error{ErrorCode::DeadlineExceeded, "another session is still registering the arena"};
    if (auto const known = known_region(arena->id(), epoch)) return *known;

    wire::RegisterRegionT message;
    message.instance = instance_;
    message.source = arena->source();
    message.bytes = arena->bytes();
    message.writable = writable;
    // Mapped after all, when nobody waits any more: without this it would stay so for ever.
    auto const on_late = [this, epoch](Reply reply) {
        auto const late = expect<wire::RegionRegisteredT>(std::move(reply));
        if (late) unregister(epoch, late.value().region);
    };
    auto const registered = DKV_TRY(expect<wire::RegionRegisteredT>(
        connection_->call(epoch, body_of(std::move(message)), deadline, on_late)));
    arena->unlink_name();

    bool first = false;
    {
        std::lock_guard const lock(mutex_);
        first = regions_.insert_or_assign(arena->id(), Region{epoch, registered.region}).second;
    }
    if (first)
        arena->on_destroy([engine = weak_from_this(), id = arena->id()] {
            auto const alive = engine.lock();
            if (alive && alive->is_own_process()) alive->forget(id);
        });
    return registered.region;
}

std::optional<std::uint64_t> Engine::known_region(std::uint64_t arena, std::uint64_t epoch) const {
    std::lock_guard const lock(mutex_);
    auto const found = regions_.find(arena);
    if (found == regions_.end() || found->second.epoch != epoch) return std::nullopt;
    return found->second.number;
}

void Engine::forget(std::uint64_t arena) {
    Region region;
    {
        std::lock_guard const lock(mutex_);
        auto const found = regions_.find(arena);
        if (found == regions_.end()) return;
        region = found->second;
        regions_.erase(found);
    }
    unregister(region.epoch, region.number);
}

void Engine::unregister(std::uint64_t epoch, std::uint64_t number) {
    wire::UnregisterRegionT message;
    message.instance = instance_;
    message.region = number;
    connection_->post(epoch, body_of(message));
}

void Engine::count_opened() {
    std::lock_guard const lock(mutex_);
    ++tally_.sessions_opened;
}

void Engine::count_failed(Error const& why) {
    std::lock_guard const lock(mutex_);
    ++tally_.sessions_failed;
    tally_.last_error = why.message;
}

Engine::Tally Engine::tally() const {
    std::lock_guard const lock(mutex_);
    return tally_;
}

}  // namespace dkv::sdk
