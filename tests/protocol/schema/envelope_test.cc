#include "protocol/schema/envelope.h"

#include <string>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;

namespace {

wire::EnvelopeT hello() {
    wire::HelloT body;
    body.instance = 0x1234;
    body.pid = 42;
    body.engine = "transformers 5.23.0";
    body.geometry = std::make_unique<wire::GeometryT>();
    body.geometry->layers = 30;
    wire::EnvelopeT envelope;
    envelope.id = 7;
    envelope.body.Set(std::move(body));
    return envelope;
}

std::span<std::byte const> as_bytes(std::vector<std::uint8_t> const& bytes) {
    return std::as_bytes(std::span(bytes));
}

}  // namespace

TEST_CASE("envelope: what was encoded is decoded") {
    auto const bytes = encode(hello());

    auto const envelope = decode(as_bytes(bytes));

    REQUIRE(envelope);
    CHECK(envelope.value()->version == kProtocolVersion);
    CHECK(envelope.value()->id == 7);
    auto const* const body = envelope.value()->body.AsHello();
    REQUIRE(body != nullptr);
    CHECK(body->pid == 42);
    CHECK(body->geometry->layers == 30);
}

TEST_CASE("envelope: cut at any length it is refused, never read past its end") {
    auto const whole = encode(hello());

    for (std::size_t length = 0; length < whole.size(); ++length) {
        CAPTURE(length);
        std::vector<std::uint8_t> const cut(whole.begin(),
                                            whole.begin() + static_cast<std::ptrdiff_t>(length));
        auto const envelope = decode(as_bytes(cut));
        REQUIRE_FALSE(envelope);
        CHECK(envelope.error().code == ErrorCode::CorruptData);
    }
}

TEST_CASE("envelope: any one byte changed is refused or still a message, never a crash") {
    auto const whole = encode(hello());

    for (std::size_t at = 0; at < whole.size(); ++at) {
        for (int const flip : {0x01, 0x80, 0xff}) {
            auto damaged = whole;
            damaged[at] = static_cast<std::uint8_t>(damaged[at] ^ flip);
            auto const envelope = decode(as_bytes(damaged));
            if (!envelope) CHECK_FALSE(envelope.error().message.empty());
        }
    }
}

TEST_CASE("envelope: another version is refused by both numbers, and its id is known") {
    auto other = hello();
    other.version = 9;
    auto const bytes = encode(other);

    std::uint64_t id = 0;
    auto const envelope = decode(as_bytes(bytes), &id);

    REQUIRE_FALSE(envelope);
    CHECK(envelope.error().code == ErrorCode::VersionMismatch);
    CHECK(envelope.error().message == "message speaks protocol version 9, this side speaks 1");
    CHECK(id == 7);
}

TEST_CASE("envelope: refusals tell the size") {
    CHECK(decode(std::as_bytes(std::span("GET / HTTP/1.1", 14))).error().message ==
          "message of 14 bytes is not a DKV1 message");
    std::vector<std::uint8_t> const large(kMessageBytesMax + 1);
    CHECK(decode(as_bytes(large)).error().message ==
          "message has 4194305 bytes; the limit is 4194304");
}

TEST_CASE("envelope: an engine's events are a message of their own, which others can ignore") {
    wire::RegisterEventsT events;
    events.instance = 0x1234;
    events.handles.assign(2 * 64, 7);
    wire::EnvelopeT envelope;
    envelope.body.Set(events);
    // Numbers of the wire: what a released version calls them.
    CHECK(static_cast<int>(wire::Body::RegisterEvents) == 37);
    CHECK(static_cast<int>(wire::RegionSource::CudaIpc) == 3);
    CHECK(static_cast<int>(wire::RegionSource::Inproc) == 6);

    auto const bytes = encode(envelope);
    auto const back = decode(as_bytes(bytes));
    REQUIRE(back);
    REQUIRE(back.value()->body.AsRegisterEvents() != nullptr);
    CHECK(back.value()->body.AsRegisterEvents()->instance == 0x1234);
    CHECK(back.value()->body.AsRegisterEvents()->handles == events.handles);
    for (std::size_t length = 0; length < bytes.size(); ++length) {
        std::vector<std::uint8_t> const cut(bytes.begin(),
                                            bytes.begin() + static_cast<std::ptrdiff_t>(length));
        if (auto const read = decode(as_bytes(cut)); read)
            CHECK(bytes.size() - length < 4);  // Padding, which nobody misses.
    }
}

TEST_CASE("envelope: handles that are not there make a message damaged, not empty") {
    auto const refusal = [](wire::Body kind, auto const& make) {
        flatbuffers::FlatBufferBuilder builder;
        auto const body = make(builder);
        builder.Finish(wire::CreateEnvelope(builder, kProtocolVersion, 7, 0, kind, body),
                       wire::EnvelopeIdentifier());
        auto const bytes = std::as_bytes(std::span(builder.GetBufferPointer(), builder.GetSize()));
        auto const envelope = decode(bytes);
        REQUIRE_FALSE(envelope);
        CHECK(envelope.error().message ==
              "message of " + std::to_string(bytes.size()) + " bytes is damaged or truncated");
    };
    refusal(wire::Body::RegisterEvents, [](flatbuffers::FlatBufferBuilder& builder) {
        auto const start = builder.StartTable();
        builder.AddElement<std::uint64_t>(wire::RegisterEvents::VT_INSTANCE, 5, 0);
        return flatbuffers::Offset<void>(builder.EndTable(start));
    });
    refusal(wire::Body::RegisterRegion, [](flatbuffers::FlatBufferBuilder& builder) {
        auto const inner = builder.StartTable();
        builder.AddElement<std::uint64_t>(wire::CudaIpc::VT_ALLOCATION_BYTES, 5, 0);
        flatbuffers::Offset<void> const source(builder.EndTable(inner));
        return wire::CreateRegisterRegion(builder, 5, wire::RegionSource::CudaIpc, source, 64)
            .Union();
    });
}

TEST_CASE("envelope: parts that many places name are refused before they are copied for each") {
    auto const read = [](auto const& make) {
        flatbuffers::FlatBufferBuilder builder;
        auto const [kind, body] = make(builder);
        builder.Finish(wire::CreateEnvelope(builder, kProtocolVersion, 7, 0, kind, body),
                       wire::EnvelopeIdentifier());
        auto const bytes = std::as_bytes(std::span(builder.GetBufferPointer(), builder.GetSize()));
        std::uint64_t id = 0;
        auto envelope = decode(bytes, &id);
        CHECK(id == 7);
        if (!envelope)
            CHECK(envelope.error().message ==
                  "message of " + std::to_string(bytes.size()) +
                      " bytes names parts of it many times, and would unpack to more than its own "
                      "size");
        return static_cast<bool>(envelope);
    };
    using Body = std::pair<wire::Body, flatbuffers::Offset<void>>;
    auto const lines = [](int times, bool shared) {
        return [=](flatbuffers::FlatBufferBuilder& builder) -> Body {
            std::string const text(1000, 'x');
            auto const one = builder.CreateString(text);
            std::vector<flatbuffers::Offset<flatbuffers::String>> all(1, one);
            while (static_cast<int>(all.size()) < times)
                all.push_back(shared ? one : builder.CreateString(text));
            auto const gone = builder.CreateVector(all);
            wire::StatusInfoBuilder info(builder);
            info.add_gone(gone);
            return {wire::Body::StatusInfo, info.Finish().Union()};
        };
    };
    CHECK(read(lines(100, false)));
    CHECK_FALSE(read(lines(100, true)));

    auto const sessions = [](int times, bool shared) {
        return [=](flatbuffers::FlatBufferBuilder& builder) -> Body {
            auto const make = [&] {
                auto const lengths = builder.CreateVector(std::vector<std::uint32_t>(1000, 3));
                wire::SessionInfoBuilder info(builder);
                info.add_lengths(lengths);
                return info.Finish();
            };
            auto const one = make();
            std::vector<flatbuffers::Offset<wire::SessionInfo>> all(1, one);
            while (static_cast<int>(all.size()) < times)
                all.push_back(shared ? one : make());
            auto const list = builder.CreateVector(all);
            return {wire::Body::SessionList, wire::CreateSessionList(builder, list).Union()};
        };
    };
    CHECK(read(sessions(50, false)));
    CHECK_FALSE(read(sessions(50, true)));
}
