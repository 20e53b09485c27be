// Which requests are taken from whom: a process of this user over a Unix socket, a controller with
// a key over TCP, anyone else over TCP.
#include <map>

#include "protocol/base/version.h"
#include "tests/sidecar/rpc/server_fixture.h"

namespace dkv::rpc {
namespace {

wire::FailureT const* ask_as(ServerFixture& s, Sender sender, wire::BodyUnion body) {
    s.sender = std::move(sender);
    wire::EnvelopeT envelope;
    envelope.id = 9;
    envelope.body = std::move(body);
    s.outbox.letters.clear();
    auto const bytes = encode(envelope);
    s.server.on_message("peer", std::as_bytes(std::span(bytes)), s.now, s.sender);
    return s.only_answer("peer").body.AsFailure();
}

template <class Message>
wire::BodyUnion empty() {
    return body_of(Message());
}

wire::BodyUnion register_region() {
    wire::RegisterRegionT message;
    message.source.Set(wire::PosixShmT());
    return body_of(std::move(message));
}

struct Asked {
    wire::BodyUnion (*body)();
    Reach reach;
};

/// Written here a second time, so that a request does not reach further than was meant.
std::map<std::string, Asked> const kWho{
    {"Hello", {[] { return body_of(ServerFixture::hello()); }, Reach::Engine}},
    {"RegisterRegion", {register_region, Reach::Engine}},
    {"UnregisterRegion", {empty<wire::UnregisterRegionT>, Reach::Engine}},
    {"RegisterEvents", {empty<wire::RegisterEventsT>, Reach::Engine}},
    {"OpenSession", {empty<wire::OpenSessionT>, Reach::Engine}},
    {"BindBuffers", {empty<wire::BindBuffersT>, Reach::Engine}},
    {"LayerReady", {[] { return body_of(ServerFixture::layer_ready()); }, Reach::Engine}},
    {"Adopted", {empty<wire::AdoptedT>, Reach::Engine}},
    {"CloseSession", {empty<wire::CloseSessionT>, Reach::Engine}},
    {"Goodbye", {empty<wire::GoodbyeT>, Reach::Engine}},
    {"Heartbeat", {empty<wire::HeartbeatT>, Reach::Engine}},
    {"ListInstances", {empty<wire::ListInstancesT>, Reach::Controller}},
    {"ListSessions", {empty<wire::ListSessionsT>, Reach::Controller}},
    {"GetSavings", {empty<wire::GetSavingsT>, Reach::Controller}},
    {"ListPolicies", {empty<wire::ListPoliciesT>, Reach::Controller}},
    {"SetPolicy", {empty<wire::SetPolicyT>, Reach::Controller}},
    {"Subscribe", {empty<wire::SubscribeT>, Reach::Controller}},
    {"Detach", {empty<wire::DetachT>, Reach::Controller}},
    {"Stop", {empty<wire::StopT>, Reach::Controller}},
    {"GetStatus", {empty<wire::GetStatusT>, Reach::Anyone}},
};

TEST_CASE("the tables of requests say who may ask, request by request") {
    std::size_t count = 0;
    for (auto const table : {engine_commands(), controller_commands()})
        for (auto const& command : table) {
            CAPTURE(command.name);
            REQUIRE(kWho.contains(command.name));
            CHECK(command.reach == kWho.at(command.name).reach);
            ++count;
        }
    CHECK(count == kWho.size());
}

TEST_CASE("a controller with a key steers, and touches no memory") {
    ServerFixture s;
    Sender const alice{.key = "alice"};
    for (auto const& [request, asked] : kWho) {
        std::string const& name = request;
        CAPTURE(name);
        auto const* const failure = ask_as(s, alice, asked.body());
        bool const is_denied =
            failure != nullptr && failure->code == wire::ErrorCode::PermissionDenied;
        CHECK(is_denied == (asked.reach == Reach::Engine));
        if (asked.reach == Reach::Engine)
            CHECK(failure->message ==
                  name + " comes from an engine, and engines attach over ipc:// alone");
    }
    s.sender = alice;
    auto const* const status = s.ask(wire::GetStatusT()).AsStatusInfo();
    REQUIRE(status != nullptr);
    CHECK(status->endpoint == "test");
    CHECK(s.ask(ServerFixture::set_policy(0, "knorm")).type == Body::Done);
    wire::StopT stop;
    stop.boot_id = kBoot;
    CHECK(s.ask(stop).type == Body::Done);
    CHECK(s.server.stopping());
}

TEST_CASE("without a key a status is all, and it says which sidecar this is, no more") {
    ServerFixture s;
    s.attach();
    for (auto const& [request, asked] : kWho) {
        std::string const& name = request;
        if (asked.reach == Reach::Anyone) continue;
        CAPTURE(name);
        auto const* const failure = ask_as(s, {}, asked.body());
        REQUIRE(failure != nullptr);
        CHECK(failure->code == wire::ErrorCode::PermissionDenied);
        if (asked.reach == Reach::Controller)
            CHECK(failure->message ==
                  name +
                      " over tcp:// takes a key: dkvd --control listens for controllers with "
                      "keys (dkv keys)");
    }
    s.sender = {};
    auto const* const status = s.ask(wire::GetStatusT()).AsStatusInfo();
    REQUIRE(status != nullptr);
    wire::StatusInfoT expected;
    expected.version = kVersion;
    expected.protocol = kProtocolVersion;
    CHECK(ServerFixture::encoded(*status, 1) == ServerFixture::encoded(expected, 1));
}

TEST_CASE("a process of another user is refused everything") {
    ServerFixture s;
    for (auto const& [request, asked] : kWho) {
        std::string const& name = request;
        CAPTURE(name);
        auto const* const failure = ask_as(s, {.process = PeerCredentials{61001, 1}}, asked.body());
        REQUIRE(failure != nullptr);
        CHECK(failure->message == "user 61001 is not the user of this sidecar");
    }
}

}  // namespace
}  // namespace dkv::rpc
