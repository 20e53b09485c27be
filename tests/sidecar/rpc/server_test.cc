#include "protocol/base/version.h"
#include "tests/sidecar/rpc/server_fixture.h"

namespace dkv::rpc {
namespace {

TEST_CASE("hello is answered with what the engine has to know") {
    ServerFixture s;
    auto const& body = s.ask(ServerFixture::hello());

    REQUIRE(body.type == Body::Welcome);
    auto const& welcome = *body.AsWelcome();
    CHECK(welcome.heartbeat_ms == 1000);
    CHECK(welcome.version == kVersion);
    CHECK(welcome.limits->sessions_max == 1024);
    CHECK(welcome.policy->name == "auto");
    CHECK(welcome.policy->capacity == 512);
    CHECK(welcome.policy->beta == 20.0);
}

TEST_CASE("every request of an engine that is not attached is answered with unknown_instance") {
    ServerFixture s;
    std::vector<wire::FailureT> failures;
    auto region = of_engine<wire::RegisterRegionT>();
    region.source.Set(wire::PosixShmT());
    failures.push_back(s.ask_in_vain(std::move(region)));
    failures.push_back(s.ask_in_vain(of_engine<wire::UnregisterRegionT>()));
    failures.push_back(s.ask_in_vain(of_engine<wire::RegisterEventsT>()));
    failures.push_back(s.ask_in_vain(ServerFixture::open_session(1)));
    failures.push_back(s.ask_in_vain(of_engine<wire::BindBuffersT>()));
    failures.push_back(s.ask_in_vain(ServerFixture::layer_ready()));
    failures.push_back(s.ask_in_vain(of_engine<wire::AdoptedT>()));
    failures.push_back(s.ask_in_vain(of_engine<wire::CloseSessionT>()));
    failures.push_back(s.ask_in_vain(of_engine<wire::GoodbyeT>()));
    failures.push_back(s.ask_in_vain(of_engine<wire::HeartbeatT>()));
    for (auto const& failure : failures) {
        CHECK(failure.code == wire::ErrorCode::UnknownInstance);
        CHECK(failure.message == "no engine 0x000000000000000b is attached: it has to say hello");
    }
}

TEST_CASE("an engine's requests are answered one by one") {
    ServerFixture s;
    s.attach();
    test::EngineMemory memory(1U << 20U);
    auto region = of_engine<wire::RegisterRegionT>();
    wire::MemfdT memfd;
    memfd.pid = test::own_pid();
    memfd.fd = memory.fd();
    memfd.inode = memory.inode();
    region.source.Set(std::move(memfd));
    region.bytes = 1U << 20U;
    auto& registered = s.ask(std::move(region));
    REQUIRE(registered.type == Body::RegionRegistered);
    CHECK(registered.AsRegionRegistered()->region == 1);

    auto& opened = s.ask(ServerFixture::open_session(1, "snapkv"));
    REQUIRE(opened.type == Body::SessionOpened);
    CHECK(opened.AsSessionOpened()->compress);
    CHECK(opened.AsSessionOpened()->window == 32);
    CHECK(opened.AsSessionOpened()->policy->name == "snapkv");
    CHECK(opened.AsSessionOpened()->destination_bytes > 0);

    auto bind = of_engine<wire::BindBuffersT>();
    bind.session = 1;
    CHECK(s.ask_in_vain(std::move(bind)).message == "no region 0 is registered");
    CHECK(s.ask_in_vain(ServerFixture::layer_ready()).code == wire::ErrorCode::BadState);
    auto adopted = of_engine<wire::AdoptedT>();
    adopted.session = 1;
    CHECK(s.ask_in_vain(std::move(adopted)).message ==
          "session 0x0000000000000001 is open: there is nothing to adopt");
    auto close = of_engine<wire::CloseSessionT>();
    close.session = 1;
    CHECK(s.ask(std::move(close)).type == Body::Done);
    auto unregister = of_engine<wire::UnregisterRegionT>();
    unregister.region = 1;
    CHECK(s.ask(std::move(unregister)).type == Body::Done);
    CHECK(s.ask(of_engine<wire::HeartbeatT>()).type == Body::Done);
    CHECK(s.ask(of_engine<wire::GoodbyeT>()).type == Body::Done);
}

TEST_CASE("a controller's requests need no hello") {
    ServerFixture s;
    s.attach();
    REQUIRE(s.ask(ServerFixture::open_session(1)).type == Body::SessionOpened);

    auto& status = s.ask(wire::GetStatusT());
    REQUIRE(status.type == Body::StatusInfo);
    CHECK(status.AsStatusInfo()->uptime_ms == 2000);
    CHECK(status.AsStatusInfo()->instances == 1);
    CHECK(status.AsStatusInfo()->sessions_open == 1);
    CHECK(status.AsStatusInfo()->backend.find("cpu") == 0);
    CHECK(status.AsStatusInfo()->policy_source == "default");
    auto& instances = s.ask(wire::ListInstancesT());
    REQUIRE(instances.type == Body::InstanceList);
    CHECK(instances.AsInstanceList()->instances.at(0)->model == "tiny");
    CHECK(instances.AsInstanceList()->instances.at(0)->alive);
    auto& sessions = s.ask(wire::ListSessionsT());
    REQUIRE(sessions.type == Body::SessionList);
    CHECK(sessions.AsSessionList()->sessions.at(0)->prompt_tokens == 1000);
    CHECK(s.ask(wire::GetSavingsT()).type == Body::SavingsInfo);
    auto& list = s.ask(wire::ListPoliciesT());
    REQUIRE(list.type == Body::PolicyList);
    CHECK(list.AsPolicyList()->policies.size() == policies().size());
    CHECK(list.AsPolicyList()->default_policy->name == "auto");
    CHECK(s.ask(wire::SubscribeT()).type == Body::Done);
    wire::ListSessionsT unknown;
    unknown.instance = 99;
    CHECK(s.ask_in_vain(std::move(unknown)).message == "no engine 0x0000000000000063 is known");

    CHECK(!s.server.stopping());
    CHECK(s.ask_in_vain(wire::StopT()).message ==
          "the boot id is of another sidecar: ask for the status first");
    CHECK(!s.server.stopping());
    wire::StopT stop;
    stop.boot_id = kBoot;
    CHECK(s.ask(stop).type == Body::Done);
    CHECK(s.server.stopping());
}

TEST_CASE("a message that is cut at any length is answered with a failure") {
    ServerFixture s;
    wire::EnvelopeT envelope;
    envelope.id = 3;
    envelope.body.Set(ServerFixture::hello());
    auto const whole = encode(envelope);
    for (std::size_t length = 0; length < whole.size(); ++length) {
        CAPTURE(length);
        // A buffer of exactly this length: reading past it is found by the address sanitizer.
        std::vector<std::uint8_t> const cut(whole.begin(),
                                            whole.begin() + static_cast<std::ptrdiff_t>(length));
        auto& reply = s.answer(cut);
        // A message ends in up to three bytes of padding, which nobody misses.
        if (whole.size() - length < 4 && reply.body.type == Body::Welcome) continue;
        REQUIRE(reply.body.type == Body::Failure);
        CHECK(reply.body.AsFailure()->code == wire::ErrorCode::CorruptData);
    }
    CHECK(s.answer(whole).body.type == Body::Welcome);
}

TEST_CASE("bytes that are flipped are answered, whatever they say") {
    ServerFixture s;
    wire::EnvelopeT envelope;
    envelope.body.Set(ServerFixture::hello());
    auto const whole = encode(envelope);
    for (std::size_t at = 0; at < whole.size(); ++at) {
        for (std::uint8_t const flip : std::initializer_list<std::uint8_t>{0x01, 0x80, 0xff}) {
            auto damaged = whole;
            damaged[at] = static_cast<std::uint8_t>(damaged[at] ^ flip);
            s.answer(damaged);
        }
    }
}

TEST_CASE("another version of the protocol is named, and the request's id comes back") {
    ServerFixture s;
    wire::EnvelopeT envelope;
    envelope.version = 2;
    envelope.id = 12;
    envelope.body.Set(wire::GetStatusT());

    auto& reply = s.answer(encode(envelope));

    CHECK(reply.id == 12);
    REQUIRE(reply.body.type == Body::Failure);
    CHECK(reply.body.AsFailure()->code == wire::ErrorCode::VersionMismatch);
    CHECK(reply.body.AsFailure()->message ==
          "message speaks protocol version 2, this side speaks 1");
}

TEST_CASE("a message that is too long, empty, or not for a sidecar is refused") {
    ServerFixture s;
    std::vector<std::uint8_t> const huge(kMessageBytesMax + 1);
    CHECK(s.answer(huge).body.AsFailure()->code == wire::ErrorCode::CorruptData);

    auto& none = s.answer(encode(wire::EnvelopeT()));
    CHECK(none.body.AsFailure()->message == "the message has no body");
    CHECK(s.ask_in_vain(wire::WelcomeT([] {
               wire::WelcomeT welcome;
               welcome.limits = std::make_unique<wire::LimitsT>();
               welcome.policy = std::make_unique<wire::PolicyT>();
               return welcome;
           }()))
              .message == "a sidecar takes no message of type 21");

    // A union that names a type and holds nothing passes the verifier.
    flatbuffers::FlatBufferBuilder builder;
    wire::EnvelopeBuilder hollow(builder);
    hollow.add_version(kProtocolVersion);
    hollow.add_body_type(Body::Hello);
    wire::FinishEnvelopeBuffer(builder, hollow.Finish());
    auto& reply = s.answer({builder.GetBufferPointer(), builder.GetSize()});
    REQUIRE(reply.body.type == Body::Failure);
    CHECK(reply.body.AsFailure()->message == "the message Hello holds nothing");
}

TEST_CASE("numbers that are no words of the protocol are refused") {
    ServerFixture s;
    auto hello = ServerFixture::hello();
    hello.geometry->dtype = static_cast<wire::Dtype>(9);
    CHECK(s.ask_in_vain(std::move(hello)).message ==
          "the geometry has dtype 9, which is none of f32 (1), f16 (2), bf16 (3)");
    s.attach();
    auto open = ServerFixture::open_session(1, "snapkv");
    open.policy->pool = static_cast<wire::Pool>(7);
    CHECK(s.ask_in_vain(std::move(open)).message == "pool 7 is none of max (0), avg (1)");
    open = ServerFixture::open_session(1, "snapkv");
    open.policy->reduce = static_cast<wire::GroupReduce>(3);
    CHECK(s.ask_in_vain(std::move(open)).message ==
          "reduce 3 is none of mean (0), max (1), sum (2)");
    auto ready = ServerFixture::layer_ready();
    ready.values->dtype = wire::Dtype::None;
    CHECK(s.ask_in_vain(std::move(ready)).message ==
          "values has dtype 0, which is none of f32 (1), f16 (2), bf16 (3)");
    CHECK(s.ask_in_vain(ServerFixture::open_session(1, "nosuch")).code ==
          wire::ErrorCode::NotFound);
    auto& status = s.ask(wire::GetStatusT());
    CHECK(status.AsStatusInfo()->errors_total == 5);
    CHECK(status.AsStatusInfo()->last_error.find("no policy is called") == 0);
}

/// As a controller of an earlier version writes it: strings where the table is now empty.
std::vector<std::uint8_t> message_of_before(Body type) {
    flatbuffers::FlatBufferBuilder builder;
    auto const input = builder.CreateString("/in.safetensors");
    auto const start = builder.StartTable();
    builder.AddOffset(flatbuffers::FieldIndexToOffset(0), input);
    builder.AddOffset(flatbuffers::FieldIndexToOffset(1), input);
    auto const body = flatbuffers::Offset<void>(builder.EndTable(start));
    wire::FinishEnvelopeBuffer(builder,
                               wire::CreateEnvelope(builder, kProtocolVersion, 9, 0, type, body));
    return {builder.GetBufferPointer(), builder.GetBufferPointer() + builder.GetSize()};
}

TEST_CASE("requests that were removed are refused by name, and the sidecar goes on") {
    ServerFixture s;
    for (auto const type : {Body::CompactFile, Body::GetFileJob}) {
        auto const& failure = *s.answer(message_of_before(type)).body.AsFailure();
        CHECK(failure.code == wire::ErrorCode::Unsupported);
        CHECK_FALSE(failure.retryable);
        CHECK(failure.message == std::string(wire::EnumNameBody(type)) +
                                     " was removed: use dkv compact, which needs no sidecar");
    }
    CHECK(s.answer(message_of_before(Body::FileJob)).body.AsFailure()->message ==
          "a sidecar takes no message of type 36");
    CHECK(s.ask(wire::GetStatusT()).AsStatusInfo()->errors_total == 3);
}

TEST_CASE("a refusal quotes what a peer sent, cut and fit for a terminal") {
    ServerFixture s;
    s.attach();
    auto open = ServerFixture::open_session(1, "dynamickv");
    open.policy->preset = "\x1b[31mred\nforged";
    CHECK(s.ask_in_vain(open).message.find("no preset is called \"?[31mred?forged\"") == 0);
    auto const last_error = [&] { return s.ask(wire::GetStatusT()).AsStatusInfo()->last_error; };
    CHECK(last_error().find("no preset is called \"?[31mred?forged\"") == 0);

    open.policy->preset = std::string(100'000, 'x');
    auto const message = s.ask_in_vain(open).message;
    CHECK(message.find("no preset is called \"xxx") == 0);
    CHECK(message.size() < 200);
    CHECK(last_error() == message);
}

TEST_CASE("what an operator sets goes before an engine's wish") {
    ServerFixture s;
    s.attach();
    auto const policy_of = [&](std::uint64_t session) {
        auto& body = s.ask(ServerFixture::open_session(session, "snapkv"));
        REQUIRE(body.type == Body::SessionOpened);
        return body.AsSessionOpened()->policy->name;
    };
    CHECK(policy_of(1) == "snapkv");
    CHECK(s.ask(ServerFixture::set_policy(0, "pyramidkv")).type == Body::Done);
    CHECK(policy_of(2) == "pyramidkv");
    CHECK(s.ask(ServerFixture::set_policy(kEngine, "streamingllm")).type == Body::Done);
    CHECK(policy_of(3) == "streamingllm");
    CHECK(s.ask(ServerFixture::set_policy(kEngine, nullptr)).type == Body::Done);
    CHECK(policy_of(4) == "pyramidkv");
    CHECK(s.ask(ServerFixture::set_policy(0, nullptr)).type == Body::Done);
    CHECK(policy_of(5) == "snapkv");
    CHECK(s.ask_in_vain(ServerFixture::set_policy(5, "snapkv")).code == wire::ErrorCode::NotFound);
}

TEST_CASE("a profile travels to the sidecar and sets the plan; replies leave its weights out") {
    ServerFixture s;
    s.attach();
    auto const profile = [](std::uint32_t layers, std::vector<double> weights) {
        auto made = std::make_unique<wire::ProfileT>();
        made->name = "tiny";
        made->layers = layers;
        made->heads = 2;
        made->weights = std::move(weights);
        made->alpha = 0.5;
        made->floor = 0.25;
        made->kernel = 21;
        return made;
    };
    auto open = ServerFixture::open_session(1, "dynamickv");
    CHECK(s.ask(open).AsSessionOpened()->staging_bytes > 0);
    open.session = 2;
    open.policy->profile = profile(3, {1, 2, 3, 4, 5, 6});

    auto const& opened = *s.ask(open).AsSessionOpened();

    CHECK(opened.staging_bytes == 0);  // Its budgets are known.
    REQUIRE(opened.policy->profile);
    CHECK(opened.policy->profile->name == "tiny");
    CHECK(opened.policy->profile->alpha == 0.5);
    CHECK(opened.policy->profile->weights.empty());
    CHECK(opened.policy->kernel == 21U);

    open.session = 3;
    open.policy->kernel = 5;
    open.policy->profile_alpha = 2.0;
    auto const& changed = *s.ask(open).AsSessionOpened();
    CHECK(changed.policy->kernel == 5U);
    CHECK(changed.policy->profile->alpha == 2);
    CHECK(changed.policy->profile->floor == 0.25);

    open.session = 4;
    open.policy->profile = profile(4, {1, 2, 3, 4, 5, 6, 7, 8});
    auto const refusal = s.ask_in_vain(open);
    CHECK(refusal.code == wire::ErrorCode::InvalidArgument);
    CHECK(refusal.message ==
          "profile \"tiny\" is for 4 layers of 2 KV heads, not for 3 of 2: calibrate this model");
    open.policy->profile = profile(3, {1, 2, 3});
    CHECK(s.ask_in_vain(open).message == "profile \"tiny\" has 3 weights for 3 layers of 2 heads");

    auto set = ServerFixture::set_policy(kEngine, "dynamickv");
    set.policy->profile = profile(4, {1, 2, 3, 4, 5, 6, 7, 8});
    CHECK(s.ask_in_vain(set).message ==
          "profile \"tiny\" is for 4 layers of 2 KV heads, not for 3 of 2: calibrate this model");
    set.policy->profile = profile(3, {1, 2, 3, 4, 5, 6});
    CHECK(s.ask(set).type == Body::Done);
    auto& listed = s.ask(wire::ListInstancesT());
    auto const& in_force = *listed.AsInstanceList()->instances.at(0)->policy;
    REQUIRE(in_force.profile);
    CHECK(in_force.profile->layers == 3);
    CHECK(in_force.profile->weights.empty());
}

TEST_CASE("granularity, norms, presets and sizes travel, and come back in full") {
    ServerFixture s;
    s.attach();
    auto open = ServerFixture::open_session(1, "dynamickv");
    open.policy->granularity = wire::Granularity::LayerHead;
    open.policy->score_norm = wire::ScoreNorm::LayerNoSink;
    open.policy->ratio = 0.25;
    open.policy->preset = "paper";
    auto const& opened = *s.ask(open).AsSessionOpened()->policy;
    CHECK(opened.granularity == wire::Granularity::LayerHead);
    CHECK(opened.score_norm == wire::ScoreNorm::LayerNoSink);
    CHECK(opened.capacity == 250U);  // Of 1,000 tokens.
    CHECK_FALSE(opened.ratio);
    CHECK(opened.window == 8U);
    CHECK(opened.pool == wire::Pool::Avg);
    CHECK(opened.query_norm == false);

    open = ServerFixture::open_session(2, "snapkv");
    open.policy->bytes = 3 * 2 * 8 * 4 * 2 * 100;
    CHECK(s.ask(open).AsSessionOpened()->policy->capacity == 100U);

    open = ServerFixture::open_session(3, "snapkv");
    open.policy->keep_mass = 0.9;
    auto const& by_mass = *s.ask(open).AsSessionOpened();
    CHECK_FALSE(by_mass.policy->capacity);
    CHECK(by_mass.policy->keep_mass == 0.9);
    CHECK(by_mass.staging_bytes == 0);
    CHECK(by_mass.destination_bytes > 3 * 2 * 8 * 4 * 2 * 1000);  // Nobody knows: room for all.

    open = ServerFixture::open_session(4, "snapkv");
    open.policy->granularity = static_cast<wire::Granularity>(3);
    CHECK(s.ask_in_vain(open).message ==
          "granularity 3 is none of layer (0), head (1), layer-head (2)");
    open = ServerFixture::open_session(4, "snapkv");
    open.policy->score_norm = static_cast<wire::ScoreNorm>(3);
    CHECK(s.ask_in_vain(open).message ==
          "score_norm 3 is none of none (0), layer (1), layer-nosink (2)");
    open = ServerFixture::open_session(4, "snapkv");
    open.policy->preset = "thesis";
    CHECK(s.ask_in_vain(open).message == "no preset is called \"thesis\"; there is paper");
}

TEST_CASE("subscribers hear what happens; those that do not read or are gone stop nobody") {
    Config config;
    config.limits.subscribers_max = 3;
    ServerFixture s(config);
    // One who left makes room as soon as room is wanted.
    for (auto const* const peer : {"gone before", "ear", "deaf"})
        CHECK(s.ask(wire::SubscribeT(), peer).type == Body::Done);
    s.outbox.gone = "gone before";
    for (auto const* const peer : {"ear", "deaf", "left", "ear"})
        CHECK(s.ask(wire::SubscribeT(), peer).type == Body::Done);
    auto& refused = s.ask(wire::SubscribeT(), "fourth");
    REQUIRE(refused.type == Body::Failure);
    CHECK(refused.AsFailure()->code == wire::ErrorCode::LimitExceeded);
    s.outbox.full = "deaf";
    s.outbox.gone = "left";

    s.attach();

    auto const heard = std::find_if(s.outbox.letters.begin(), s.outbox.letters.end(),
                                    [](auto const& letter) { return letter.peer == "ear"; });
    REQUIRE(heard != s.outbox.letters.end());
    REQUIRE(heard->envelope->body.type == Body::Notice);
    auto const& notice = *heard->envelope->body.AsNotice();
    CHECK(notice.kind == "instance_attached");
    CHECK(notice.at_ms == 8000);
    CHECK(notice.instance == kEngine);
    CHECK(notice.text == "pid " + std::to_string(::getpid()) +
                             ", test 1.0, tiny, 3 layers, 4/2 heads, head_dim 8, f32");
    // The one that left made room.
    CHECK(s.ask(wire::SubscribeT(), "fourth").type == Body::Done);

    wire::SubscribeT off;
    off.on = false;
    CHECK(s.ask(std::move(off), "ear").type == Body::Done);
    s.outbox.letters.clear();
    s.server.say_stopping(s.now);
    REQUIRE(s.outbox.letters.size() == 1);
    CHECK(s.outbox.letters[0].envelope->body.AsNotice()->kind == "stopping");
}

}  // namespace
}  // namespace dkv::rpc
