// What a sidecar may say. A session takes nothing over from an answer or an event that was not
// checked here, or in Layers where it depends on what was said before: a sidecar is trusted with
// rows and with nothing else.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "protocol/base/geometry.h"
#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"
#include "protocol/sdk/clock.h"

namespace dkv::sdk {

/// CorruptData, "the sidecar MESSAGE".
Error corrupt_answer(std::string const& message);

/// A Failure's code and text. An unknown code becomes Internal; the text is cut, and its control
/// characters are replaced, because engines log it.
Error error_of(wire::FailureT const& failure);

/// Errors of them all: CorruptData. Sizes that the prompt cannot need, or a name that is not one.
Result<void> check_opened(wire::SessionOpenedT const& opened,
                          Geometry const& geometry,
                          std::uint32_t prompt_tokens);

/// One length per KV head, none above `rows_max`.
Result<void> check_lengths(wire::LayerProgressT const& progress,
                           std::uint32_t kv_heads,
                           std::uint32_t rows_max);

/// Positions of one head's rows: ascending, and inside the prompt.
Result<void> check_positions(std::span<std::int32_t const> positions,
                             std::uint32_t prompt_tokens,
                             std::string const& whose);

/// Shares of attention, byte counts that follow from the lengths, and a time that can have passed
/// since `opened_at`. The lengths are those of the packed layers by now.
Result<void> check_totals(wire::CommittedT const& committed,
                          Geometry const& geometry,
                          std::uint32_t prompt_tokens,
                          Deadline opened_at);

/// The most numbers that events of one session can have. A sidecar that says more is refused,
/// because they are kept until the engine asks for them.
std::uint64_t session_words_max(Geometry const& geometry);
/// The numbers of one event, in words of four bytes.
std::uint64_t words_of(wire::BodyUnion const& event);

}  // namespace dkv::sdk
