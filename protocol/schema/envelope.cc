#include "protocol/schema/envelope.h"

#include <cstring>
#include <string>

#include "protocol/schema/weight.h"

namespace dkv {

std::vector<std::uint8_t> encode(wire::EnvelopeT const& envelope) {
    flatbuffers::FlatBufferBuilder builder;
    if (envelope.version != 0) {
        wire::FinishEnvelopeBuffer(builder, wire::Envelope::Pack(builder, &envelope));
    } else {
        auto const body = envelope.body.Pack(builder);
        wire::FinishEnvelopeBuffer(
            builder, wire::CreateEnvelope(builder, kProtocolVersion, envelope.id, envelope.boot_id,
                                          envelope.body.type, body));
    }
    return {builder.GetBufferPointer(), builder.GetBufferPointer() + builder.GetSize()};
}

Result<std::unique_ptr<wire::EnvelopeT>> decode(std::span<std::byte const> bytes,
                                                std::uint64_t* id) {
    if (id != nullptr) *id = 0;
    auto const size = std::to_string(bytes.size());
    if (bytes.size() > kMessageBytesMax)
        return Error{ErrorCode::CorruptData, "message has " + size + " bytes; the limit is " +
                                                 std::to_string(kMessageBytesMax)};
    // FlatBuffers reads in place and aligned; ZeroMQ gives bytes at any address.
    std::vector<std::uint64_t> aligned;
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(std::uint64_t) != 0) {
        aligned.resize(bytes.size() / sizeof(std::uint64_t) + 1);
        std::memcpy(aligned.data(), bytes.data(), bytes.size());
        bytes = std::as_bytes(std::span(aligned)).first(bytes.size());
    }
    auto const* const data = reinterpret_cast<std::uint8_t const*>(bytes.data());
    // Too short for an offset and an identifier: GetRoot would read past the end.
    if (bytes.size() < 2 * sizeof(flatbuffers::uoffset_t) ||
        !wire::EnvelopeBufferHasIdentifier(data))
        return Error{ErrorCode::CorruptData, "message of " + size + " bytes is not a DKV1 message"};
    flatbuffers::Verifier verifier(data, bytes.size(), kMessageDepthMax, kMessageTablesMax);
    if (!wire::VerifyEnvelopeBuffer(verifier))
        return Error{ErrorCode::CorruptData,
                     "message of " + size + " bytes is damaged or truncated"};

    auto const* const envelope = wire::GetEnvelope(data);
    if (id != nullptr) *id = envelope->id();
    if (envelope->version() != kProtocolVersion)
        return Error{ErrorCode::VersionMismatch,
                     "message speaks protocol version " + std::to_string(envelope->version()) +
                         ", this side speaks " + std::to_string(kProtocolVersion)};
    if (!unpacks_within(*envelope, bytes.size()))
        return Error{ErrorCode::CorruptData, "message of " + size +
                                                 " bytes names parts of it many times, and would "
                                                 "unpack to more than its own size"};
    return std::unique_ptr<wire::EnvelopeT>(envelope->UnPack());
}

}  // namespace dkv
