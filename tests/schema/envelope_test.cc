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
