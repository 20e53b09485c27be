// Bytes ↔ messages: the only place where foreign bytes become a FlatBuffer. Both sides use it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "protocol/base/result.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv {

constexpr std::uint16_t kProtocolVersion = 1;

/// No message is larger, deeper or made of more tables: checked before anything is read.
constexpr std::size_t kMessageBytesMax = 4U << 20U;
constexpr std::size_t kMessageDepthMax = 8;
constexpr std::size_t kMessageTablesMax = 100'000;

/// The envelope as wire bytes, stamped with kProtocolVersion unless `envelope.version` is set.
std::vector<std::uint8_t> encode(wire::EnvelopeT const& envelope);

/// Errors: CorruptData when the bytes are too long, no DKV1 message, or fail the verifier (the
/// message tells how many bytes there were); VersionMismatch, naming both versions, when they are
/// another version's. Where the id could be read in spite of that, *id holds it, so that it can be
/// answered.
Result<std::unique_ptr<wire::EnvelopeT>> decode(std::span<std::byte const> bytes,
                                                std::uint64_t* id = nullptr);

}  // namespace dkv
