// Words of the C ABI and of protocol/base as words of the wire, and back.
#pragma once

#include <string>

#include "protocol/base/geometry.h"
#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"
#include "protocol/sdk/answers.h"
#include "protocol/sdk/dkv.h"

namespace dkv::sdk {

dkv_status status_of(ErrorCode code) noexcept;

/// Errors: InvalidArgument, naming the field.
Result<Geometry> geometry_of(dkv_geometry const& geometry);
wire::GeometryT wire_of(Geometry const& geometry);

/// A wish without a name has an empty one. Errors: InvalidArgument for an unknown pool or reduce;
/// what a policy makes of its numbers is the sidecar's to say.
Result<wire::PolicyT> wire_of(dkv_policy const& policy);

/// The shape as people read it: "[3, 4096, 64] bf16".
std::string describe(dkv_rows const& rows);

/// `what`: "keys" and so on, for the message. Errors: InvalidArgument when the shape or dtype is
/// not [heads, tokens, head_dim] of `dtype`, or a row lies outside the arena's `arena_bytes`.
Result<void> check_rows(char const* what,
                        dkv_rows const& rows,
                        dkv_rows const& wanted,
                        std::uint64_t arena_bytes);

/// For `rows` that are those of block 0. Errors: InvalidArgument when the prompt's tokens do not
/// fill the blocks, or one of those ends outside the arena.
Result<void> check_blocks(char const* what,
                          dkv_rows const& rows,
                          dkv_blocks const& blocks,
                          std::uint32_t prompt_tokens,
                          std::uint64_t arena_bytes);

/// A prompt that lies in one block, as rows that need no table.
dkv_rows in_block(dkv_rows rows, dkv_blocks const& blocks, std::uint32_t prompt_tokens) noexcept;

wire::RowsT wire_of(dkv_rows const& rows, std::uint64_t region);
wire::BlocksT wire_of(dkv_blocks const& blocks);

/// "LayerReady": how a message is called in a message to people.
inline std::string name_of(wire::Body body) {
    return wire::EnumNameBody(body);
}

template <class Message>
wire::BodyUnion body_of(Message message) {
    wire::BodyUnion body;
    body.Set(std::move(message));
    return body;
}

/// The reply as the message it has to be. Errors: the reply's own; CorruptData for another message.
template <class Message>
Result<Message> expect(Result<wire::BodyUnion> reply) {
    auto body = DKV_TRY(std::move(reply));
    auto const wanted = wire::BodyUnionTraits<Message>::enum_value;
    if (body.type != wanted)
        return corrupt_answer("answered with " + name_of(body.type) + " where " + name_of(wanted) +
                              " was due");
    return std::move(*static_cast<Message*>(body.value));
}

}  // namespace dkv::sdk
