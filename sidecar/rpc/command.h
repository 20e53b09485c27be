// The table of requests: one line per message that a sidecar takes.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"
#include "sidecar/config/config.h"
#include "sidecar/rpc/subscribers.h"
#include "sidecar/session/table.h"

namespace dkv::rpc {

/// What requests may see and touch.
struct Context {
    Config const& config;
    std::string const& endpoint;
    std::string const& fd_socket;
    std::uint64_t boot_id;
    Millis started_at;
    Table& table;
    Subscribers& subscribers;
    bool& stopping;
};

/// A body of type NONE: the answer comes later, when a worker has it.
using Reply = Result<wire::BodyUnion>;

/// Who may ask. Over TCP there are only controllers, and their requests touch no memory of the
/// sidecar's machine. The tables of commands say which is which.
enum class Reach : std::uint8_t {
    Engine,      ///< Engines, over ipc://. A failure is the engine's `last error`.
    Controller,  ///< Also controllers over tcp:// that proved a key.
    Anyone       ///< Also over tcp:// without keys, where the answer says little.
};

struct Command {
    wire::Body body;
    char const* name;
    Reach reach;
    Reply (*run)(Context& context, Caller const& caller, wire::BodyUnion const& body);
    std::uint64_t (*instance)(wire::BodyUnion const& body);  ///< 0 where the message names none.
};

/// A line of the table out of a handler that takes the message's own struct.
template <class Message, Reply (*handler)(Context&, Caller const&, Message const&)>
constexpr Command command(char const* name, Reach reach) {
    return {wire::BodyUnionTraits<Message>::enum_value, name, reach,
            [](Context& context, Caller const& caller, wire::BodyUnion const& body) {
                return handler(context, caller, *static_cast<Message const*>(body.value));
            },
            [](wire::BodyUnion const& body) -> std::uint64_t {
                if constexpr (requires(Message const& message) { message.instance; })
                    return static_cast<Message const*>(body.value)->instance;
                else
                    return 0;
            }};
}

template <class Message>
wire::BodyUnion body_of(Message message) {
    wire::BodyUnion body;
    body.Set(std::move(message));
    return body;
}

std::span<Command const> engine_commands() noexcept;
std::span<Command const> controller_commands() noexcept;

}  // namespace dkv::rpc
