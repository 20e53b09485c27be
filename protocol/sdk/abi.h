// What the functions of dkv.h share: the handles, the guard that no exception passes, the last
// error.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "protocol/base/result.h"
#include "protocol/sdk/arena.h"
#include "protocol/sdk/convert.h"
#include "protocol/sdk/dkv.h"
#include "protocol/sdk/engine.h"
#include "protocol/sdk/session.h"

struct dkv_arena {
    std::shared_ptr<dkv::sdk::Arena> arena;
};

struct dkv_engine {
    std::shared_ptr<dkv::sdk::Engine> engine;
};

struct dkv_session {
    std::unique_ptr<dkv::sdk::Session> session;
};

namespace dkv::sdk {

/// Keeps the message for dkv_last_error() on this thread; never throws.
void remember(std::string const& message) noexcept;

/// Runs the body of a C function: an Error or an exception becomes a status and a message.
template <class Body>
dkv_status guarded(Body&& body) noexcept {
    try {
        remember({});
        Result<void> const result = body();
        if (result) return DKV_OK;
        remember(result.error().message);
        return status_of(result.error().code);
    } catch (std::bad_alloc const&) {
        remember("out of memory");
        return DKV_IO;
    } catch (std::exception const& error) {
        remember(error.what());
    } catch (...) {
        remember("an exception of no known kind");
    }
    return DKV_INTERNAL;
}

inline Error null_pointer(char const* name) {
    return Error{ErrorCode::InvalidArgument, std::string(name) + " is NULL"};
}

/// Errors: InvalidArgument for NULL, or a struct shorter than this library's first version knows.
template <class Struct>
Result<void> check_struct(char const* name, Struct const* given) {
    if (given == nullptr) return null_pointer(name);
    if (given->struct_bytes >= sizeof(Struct)) return {};
    return Error{ErrorCode::InvalidArgument, std::string(name) + "->struct_bytes is " +
                                                 std::to_string(given->struct_bytes) + ", not " +
                                                 std::to_string(sizeof(Struct))};
}

/// A struct that has grown: what an engine that was built with an earlier dkv.h does not know of
/// keeps its default. `first_version` bytes are the least. Errors: InvalidArgument.
template <class Struct>
Result<Struct> whole(char const* name,
                     Struct const& given,
                     std::size_t first_version,
                     Struct const& defaults) {
    if (given.struct_bytes < first_version)
        return Error{ErrorCode::InvalidArgument, std::string(name) + "->struct_bytes is " +
                                                     std::to_string(given.struct_bytes) + ", not " +
                                                     std::to_string(sizeof given)};
    Struct made = defaults;
    std::memcpy(&made, &given, std::min<std::size_t>(given.struct_bytes, sizeof made));
    made.struct_bytes = sizeof made;
    return made;
}

/// dkv_engine_open's body; `gpu` is null for the CPU.
Result<void> open_engine(dkv_engine_options const* options,
                         std::shared_ptr<Device const> gpu,
                         dkv_engine** engine);
/// dkv_session_layer_ready's body.
Result<void> report_layer(dkv_session* session,
                          dkv_layer_ready const* ready,
                          std::optional<Stream> stream);

/// Errors: BadState in a child after fork().
Result<void> check_process(Engine const& engine);

}  // namespace dkv::sdk
