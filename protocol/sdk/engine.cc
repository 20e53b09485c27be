#include "protocol/sdk/engine.h"

#include <unistd.h>
#include <utility>

#include "protocol/base/endpoint.h"
#include "protocol/sdk/convert.h"
#include "protocol/sdk/fd_sender.h"
#include "protocol/sdk/shm_arena.h"

namespace dkv::sdk {

Result<std::shared_ptr<Engine>> Engine::open(EngineOptions options) {
    DKV_TRY(check_endpoint(options.endpoint));
    DKV_TRY(check(options.geometry));
    if (!options.gpu && options.device != "cpu")
        return Error{
            ErrorCode::InvalidArgument,
            "device '" + options.device +
                "' is not cpu: a GPU's engine is opened by dkv_cuda_engine_open of libdkv_cuda"};

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
    : options_(std::move(options)), instance_(instance), owner_(::getpid()) {
    if (options_.gpu) fences_.emplace(options_.gpu);
}

void Engine::close() {
    // Before the goodbye, while the sidecar can still say that it let go.
    if (fences_ && is_own_process()) fences_->take_timeline();
    connection_->stop();
    collect();
}

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

    collect();
    auto const number = DKV_TRY(register_region(*arena, writable, epoch, deadline));
    arena->on_mapped();
    bool first = false;
    {
        std::lock_guard const lock(mutex_);
        first = regions_.insert_or_assign(arena->id(), Region{epoch, number}).second;
    }
    if (first)
        arena->on_detach([engine = weak_from_this(),
                          id = arena->id()](std::shared_ptr<void> memory) -> Result<void> {
            auto const alive = engine.lock();
            if (!alive || !alive->is_own_process()) return {};
            return alive->forget(id, std::move(memory));
        });
    return number;
}

Result<std::uint64_t> Engine::register_region(Arena& arena,
                                              bool writable,
                                              std::uint64_t epoch,
                                              Deadline deadline) {
    auto source = DKV_TRY(arena.source());
    if (source.file) {
        auto const attachment = connection_->attachment();
        DKV_TRY(send_descriptor(attachment ? attachment->fd_socket : std::string{}, instance_,
                                source.ticket, source.file, deadline));
    }
    wire::RegisterRegionT message;
    message.instance = instance_;
    message.source = std::move(source.region);
    message.bytes = arena.bytes();
    message.writable = writable;
    // Mapped after all, when no call waits any more: without this it would stay so for ever.
    auto const on_late = [this, epoch](Reply reply) {
        auto const late = expect<wire::RegionRegisteredT>(std::move(reply));
        if (late) unregister(epoch, late.value().region);
    };
    auto const registered = DKV_TRY(expect<wire::RegionRegisteredT>(
        connection_->call(epoch, body_of(std::move(message)), deadline, on_late)));
    return registered.region;
}

std::optional<std::uint64_t> Engine::known_region(std::uint64_t arena, std::uint64_t epoch) const {
    std::lock_guard const lock(mutex_);
    auto const found = regions_.find(arena);
    if (found == regions_.end() || found->second.epoch != epoch) return std::nullopt;
    return found->second.number;
}

Result<void> Engine::forget(std::uint64_t arena, std::shared_ptr<void> memory) {
    Region region;
    {
        std::lock_guard const lock(mutex_);
        auto const found = regions_.find(arena);
        if (found == regions_.end()) return {};
        region = found->second;
        regions_.erase(found);
    }
    if (memory) return wait_for_detach(region, std::move(memory));
    unregister(region.epoch, region.number);
    return {};
}

void Engine::unregister(std::uint64_t epoch, std::uint64_t number) {
    wire::UnregisterRegionT message;
    message.instance = instance_;
    message.region = number;
    connection_->post(epoch, body_of(message));
}

struct Engine::Detaching {
    std::mutex mutex;
    bool detached = false;
    std::shared_ptr<void> memory;  // Kept for the late reply.
};

Result<void> Engine::wait_for_detach(Region const& region, std::shared_ptr<void> memory) {
    collect();
    wire::UnregisterRegionT message;
    message.instance = instance_;
    message.region = region.number;
    auto const detaching = std::make_shared<Detaching>();
    // Whatever the late reply is: a sidecar that refuses or is gone has nothing mapped either.
    auto const on_late = [detaching, engine = weak_from_this()](Reply const&) {
        std::shared_ptr<void> freed;
        {
            std::lock_guard const lock(detaching->mutex);
            detaching->detached = true;
            freed = std::move(detaching->memory);
        }
        auto const alive = engine.lock();
        if (!alive || !freed) return;
        std::lock_guard const lock(alive->mutex_);
        alive->let_go_.push_back(std::move(freed));
    };
    auto const reply = connection_->call(region.epoch, body_of(message), deadline(), on_late);
    if (reply || reply.error().code != ErrorCode::DeadlineExceeded) return {};
    std::lock_guard const lock(detaching->mutex);
    if (detaching->detached) return {};
    detaching->memory = std::move(memory);
    return Error{ErrorCode::DeadlineExceeded, "the sidecar has not let go of region " +
                                                  std::to_string(region.number) + " in " +
                                                  std::to_string(options_.timeout.count()) +
                                                  " ms: its memory is freed when it has"};
}

void Engine::collect() {
    std::vector<std::shared_ptr<void>> freed;  // Goes after the lock: freeing may take its time.
    std::lock_guard const lock(mutex_);
    freed.swap(let_go_);
}

Result<std::shared_ptr<Arena>> Engine::make_arena(std::uint64_t bytes) {
    if (options_.gpu) return options_.gpu->allocate(bytes);
    return ShmArena::create(bytes, DKV_ARENA_DEFAULT);
}

Result<Fence> Engine::fence(void* stream, std::uint64_t epoch, Deadline deadline) {
    if (!fences_)
        return Error{ErrorCode::BadState,
                     "this engine is on the CPU: there is no stream to wait for"};
    return fences_->put(*this, stream, epoch, deadline);
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
