// dkv.h's functions on arenas and engines: thin, for the work is done elsewhere.
#include "protocol/sdk/abi.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "protocol/base/endpoint.h"
#include "protocol/base/version.h"
#include "protocol/sdk/shm_arena.h"

using dkv::Error;
using dkv::ErrorCode;
using dkv::Result;
using dkv::sdk::check_process;
using dkv::sdk::check_struct;
using dkv::sdk::guarded;
using dkv::sdk::milliseconds;
using dkv::sdk::null_pointer;

namespace {

constexpr std::uint32_t kTimeoutMsDefault = 2000;

std::string& last_error() noexcept {
    thread_local std::string message;
    return message;
}

std::string text_or(char const* given, std::string other) {
    return given != nullptr && *given != '\0' ? std::string(given) : std::move(other);
}

/// As much as fits, without half a UTF-8 character at its end.
template <std::size_t n>
void copy_text(std::string const& text, char (&out)[n]) {
    std::size_t length = std::min(text.size(), n - 1);
    auto const continues = [&](std::size_t at) {
        return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0U) == 0x80U;
    };
    while (length > 0 && continues(length))
        --length;
    std::memcpy(out, text.data(), length);
    out[length] = '\0';
}

}  // namespace

namespace dkv::sdk {

void remember(std::string const& message) noexcept {
    try {
        last_error() = message;
    } catch (...) {
        last_error().clear();
    }
}

Result<void> check_process(Engine const& engine) {
    if (engine.is_own_process()) return {};
    return Error{ErrorCode::BadState,
                 "this engine belongs to the process before fork(): open one here"};
}

Result<void> open_engine(dkv_engine_options const* options,
                         std::shared_ptr<Device const> gpu,
                         dkv_engine** engine) {
    if (engine == nullptr) return null_pointer("engine");
    *engine = nullptr;
    DKV_TRY(check_struct("options", options));
    auto const timeout_ms = options->timeout_ms == 0 ? kTimeoutMsDefault : options->timeout_ms;
    // Outside the braces: g++ 12 forgets half-made aggregates when DKV_TRY returns inside them.
    auto const geometry = DKV_TRY(geometry_of(options->geometry));
    auto const device = gpu ? gpu->uuid() : text_or(options->device, "cpu");
    auto opened = DKV_TRY(Engine::open({.endpoint = text_or(options->endpoint, default_endpoint()),
                                        .engine = text_or(options->engine, {}),
                                        .model = text_or(options->model, {}),
                                        .device = device,
                                        .gpu = std::move(gpu),
                                        .group = options->group,
                                        .geometry = geometry,
                                        .timeout = milliseconds(timeout_ms)}));
    *engine = new dkv_engine{std::move(opened)};
    return {};
}

}  // namespace dkv::sdk

char const* dkv_version(void) {
    return dkv::kVersion;
}

char const* dkv_last_error(void) {
    return last_error().c_str();
}

char const* dkv_status_name(dkv_status status) {
    if (status == DKV_OK) return "ok";
    return dkv::name_of(static_cast<ErrorCode>(status)).data();  // Literals: they end in 0.
}

dkv_status dkv_arena_create(uint64_t bytes, dkv_arena_kind kind, dkv_arena** arena) {
    return guarded([&]() -> Result<void> {
        if (arena == nullptr) return null_pointer("arena");
        *arena = nullptr;
        auto made = DKV_TRY(dkv::sdk::ShmArena::create(bytes, kind));
        *arena = new dkv_arena{std::move(made)};
        return {};
    });
}

void* dkv_arena_base(dkv_arena const* arena) {
    return arena == nullptr ? nullptr : arena->arena->base();
}

uint64_t dkv_arena_bytes(dkv_arena const* arena) {
    return arena == nullptr ? 0 : arena->arena->bytes();
}

dkv_status dkv_arena_release(dkv_arena* arena, uint64_t offset, uint64_t bytes) {
    return guarded([&]() -> Result<void> {
        if (arena == nullptr) return null_pointer("arena");
        return arena->arena->release(offset, bytes);
    });
}

uint64_t dkv_arena_allocated_bytes(dkv_arena const* arena) {
    return arena == nullptr ? 0 : arena->arena->allocated_bytes();
}

void dkv_arena_destroy(dkv_arena* arena) {
    guarded([&]() -> Result<void> {
        delete arena;
        return {};
    });
}

dkv_status dkv_engine_open(dkv_engine_options const* options, dkv_engine** engine) {
    return guarded(
        [&]() -> Result<void> { return dkv::sdk::open_engine(options, nullptr, engine); });
}

dkv_status dkv_engine_wait_attached(dkv_engine* engine, uint32_t timeout_ms) {
    return guarded([&]() -> Result<void> {
        if (engine == nullptr) return null_pointer("engine");
        DKV_TRY(check_process(*engine->engine));
        auto const deadline = dkv::sdk::Clock::now() + milliseconds(timeout_ms);
        DKV_TRY(engine->engine->connection().wait_attached(deadline));
        return {};
    });
}

dkv_status dkv_engine_get_state(dkv_engine* engine, dkv_engine_state* state) {
    return guarded([&]() -> Result<void> {
        if (engine == nullptr) return null_pointer("engine");
        DKV_TRY(check_struct("state", state));
        DKV_TRY(check_process(*engine->engine));
        auto& connection = engine->engine->connection();
        auto const tally = engine->engine->tally();
        state->attached = connection.is_answered() ? 1 : 0;
        state->instance = engine->engine->instance();
        state->boot_id = connection.boot_id();
        state->sessions_opened = tally.sessions_opened;
        state->sessions_failed = tally.sessions_failed;
        copy_text(tally.last_error, state->last_error);
        return {};
    });
}

void dkv_engine_close(dkv_engine* engine) {
    guarded([&]() -> Result<void> {
        // In a forked child there is no thread to end, and its locks are in any state: let it lie.
        if (engine == nullptr || !engine->engine->is_own_process()) return {};
        engine->engine->close();
        delete engine;
        return {};
    });
}
