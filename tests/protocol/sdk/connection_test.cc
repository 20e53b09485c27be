// Attaching, and everything that can go wrong with a line.
#include <chrono>
#include <string>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/wait.h>

#include "tests/protocol/sdk/harness.h"

using namespace dkv;
using namespace dkv::test;

namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

TEST_CASE("hello tells who the engine is, and its generation counts hellos") {
    Harness harness;

    auto const request = harness.sidecar->wait_for(wire::Body::Hello);
    REQUIRE(request);
    auto const& hello = *request->body.AsHello();
    CHECK(hello.instance == harness.state().instance);
    CHECK(hello.generation == 1);
    CHECK(hello.pid == static_cast<std::uint32_t>(::getpid()));
    CHECK(hello.engine == "test");
    CHECK(hello.device == "cpu");
    CHECK(hello.geometry->layers == kLayers);
    CHECK(harness.state().attached == 1);
    CHECK(harness.state().boot_id == 1);
    CHECK(harness.sidecar->wait_for(wire::Body::Heartbeat, 2));
}

TEST_CASE("an engine needs no sidecar to open; its sessions fail at once and say what to do") {
    TemporaryEndpoint const endpoint;
    auto* const engine = open_engine(endpoint.name(), 30'000);
    auto options = sized<dkv_session_options>();
    options.prompt_tokens = kTokens;
    auto plan = sized<dkv_session_plan>();
    dkv_session* session = nullptr;

    auto const begin = Clock::now();
    CHECK(dkv_session_open(engine, &options, &session, &plan) == DKV_UNAVAILABLE);
    CHECK(Clock::now() - begin < std::chrono::seconds(10));
    CHECK(why() == "no sidecar answers at " + endpoint.name() + "; start one with dkvd");
    CHECK(session == nullptr);
    CHECK(dkv_engine_wait_attached(engine, 20) == DKV_UNAVAILABLE);

    auto state = sized<dkv_engine_state>();
    REQUIRE(dkv_engine_get_state(engine, &state) == DKV_OK);
    CHECK(state.attached == 0);
    CHECK(state.boot_id == 0);
    CHECK(state.sessions_failed == 1);
    CHECK(std::string(state.last_error).starts_with("no sidecar answers"));
    dkv_engine_close(engine);
}

TEST_CASE("a sidecar that starts later is found by the next session") {
    TemporaryEndpoint const endpoint;
    auto* const engine = open_engine(endpoint.name());
    auto options = sized<dkv_session_options>();
    options.prompt_tokens = kTokens;
    auto plan = sized<dkv_session_plan>();
    dkv_session* session = nullptr;
    REQUIRE(dkv_session_open(engine, &options, &session, &plan) == DKV_UNAVAILABLE);

    FakeSidecar sidecar(endpoint.name());

    REQUIRE_MESSAGE(dkv_session_open(engine, &options, &session, &plan) == DKV_OK, why());
    CHECK(plan.compress == 0);
    CHECK(std::string(plan.policy) == "dynamickv");
    CHECK(plan.capacity == 512);
    auto result = sized<dkv_result>();
    CHECK(dkv_session_finish(session, 0, &result) == DKV_OK);
    CHECK(result.committed == 0);
    dkv_session_close(session, nullptr);
    dkv_engine_close(engine);
}

TEST_CASE("a sidecar that accepts and says nothing runs into the deadline") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.on(wire::Body::Hello, [](auto const&) { return std::nullopt; });
    auto* const engine = open_engine(endpoint.name(), 100);

    CHECK(dkv_engine_wait_attached(engine, 1000) == DKV_DEADLINE_EXCEEDED);
    CHECK(why() == "the sidecar at " + endpoint.name() + " did not answer a hello in 100 ms");
    dkv_engine_close(engine);
}

TEST_CASE("a sidecar of another version is refused, both versions named") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.set_version(2);
    auto* const engine = open_engine(endpoint.name());

    CHECK(dkv_engine_wait_attached(engine, 60'000) == DKV_VERSION_MISMATCH);
    CHECK(why() == "message speaks protocol version 2, this side speaks 1");
    dkv_engine_close(engine);
}

TEST_CASE("a sidecar that refuses our version is believed") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.on(wire::Body::Hello, [](auto const&) {
        return failure(wire::ErrorCode::VersionMismatch, "message speaks 1, this side speaks 3");
    });
    auto* const engine = open_engine(endpoint.name());

    CHECK(dkv_engine_wait_attached(engine, 60'000) == DKV_VERSION_MISMATCH);
    CHECK(why() == "message speaks 1, this side speaks 3");
    dkv_engine_close(engine);
}

TEST_CASE("damage on the line is an error, not a crash, and the next hello mends it") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.garble_next({1, 2, 3, 4, 5, 6, 7, 8, 9});
    auto* const engine = open_engine(endpoint.name());

    CHECK_MESSAGE(dkv_engine_wait_attached(engine, 20'000) == DKV_OK, why());
    dkv_engine_close(engine);
}

TEST_CASE("an engine that the sidecar forgot says hello again by itself") {
    Harness harness;
    harness.sidecar->on_next(wire::Body::Heartbeat, 1, [](auto const&) {
        return failure(wire::ErrorCode::UnknownInstance, "instance 7 is unknown");
    });

    auto const again = harness.sidecar->wait_for(wire::Body::Hello, 2);
    REQUIRE(again);
    CHECK(again->body.AsHello()->generation == 2);
    CHECK(again->body.AsHello()->instance == harness.state().instance);
    CHECK(dkv_engine_wait_attached(harness.engine, 5000) == DKV_OK);
}

TEST_CASE("a session that finds itself forgotten is opened again after a hello") {
    Harness harness;
    harness.sidecar->on_next(wire::Body::OpenSession, 1, [](auto const&) {
        return failure(wire::ErrorCode::UnknownInstance, "instance 7 is unknown");
    });

    CHECK_MESSAGE(harness.open() == DKV_OK, why());

    CHECK(harness.sidecar->count(wire::Body::OpenSession) == 2);
    CHECK(harness.sidecar->count(wire::Body::Hello) == 2);
    CHECK(harness.plan.compress == 1);
}

TEST_CASE("a session that is forgotten twice gives up") {
    Harness harness;
    harness.sidecar->on(wire::Body::OpenSession, [](auto const&) {
        return failure(wire::ErrorCode::UnknownInstance, "instance 7 is unknown");
    });

    CHECK(harness.open() == DKV_UNKNOWN_INSTANCE);
    CHECK(why() == "instance 7 is unknown");
}

TEST_CASE("another boot_id means another sidecar: the engine attaches again") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);

    harness.sidecar->set_boot_id(2);

    CHECK(harness.sidecar->wait_for(wire::Body::Hello, 2));
    CHECK(harness.event() == "FAILED: the sidecar went away: it was restarted");
    CHECK(dkv_engine_wait_attached(harness.engine, 5000) == DKV_OK);
    CHECK(harness.state().boot_id == 2);
}

TEST_CASE("a sidecar that ends is noticed at once, and its successor serves the next session") {
    Harness harness(60'000);
    harness.sidecar->set_heartbeat_ms(60'000);
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);

    harness.sidecar.reset();

    CHECK(harness.event() == "FAILED: the sidecar went away");
    CHECK(dkv_session_failure(harness.session) == DKV_UNAVAILABLE);
    CHECK(harness.report(1) == DKV_BAD_STATE);
    CHECK(why() == "the session was abandoned: the sidecar went away");
    CHECK(harness.view(0).form == DKV_LAYER_FULL);
    dkv_session_close(harness.session, nullptr);
    harness.session = nullptr;

    harness.sidecar = std::make_unique<FakeSidecar>(harness.endpoint.name(), 2);
    harness.sidecar->set_opened(compressing());
    REQUIRE_MESSAGE(harness.open() == DKV_OK, why());
    CHECK_MESSAGE(harness.report(0) == DKV_OK, why());
    CHECK(harness.sidecar->wait_for(wire::Body::LayerReady));
    CHECK(harness.state().sessions_opened == 2);
    CHECK(harness.state().sessions_failed == 1);
}

TEST_CASE("a request that is on its way when the sidecar ends fails at once") {
    Harness harness(60'000);
    harness.sidecar->on(wire::Body::OpenSession, [](auto const&) { return std::nullopt; });
    std::thread end([&] {
        harness.sidecar->wait_for(wire::Body::OpenSession);
        harness.sidecar.reset();
    });

    CHECK(harness.open() == DKV_UNAVAILABLE);
    end.join();
    CHECK(why() == "the sidecar went away");
}

TEST_CASE("heartbeats that nobody answers end the attachment") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    harness.sidecar->on(wire::Body::Hello, [](auto const&) { return std::nullopt; });
    harness.sidecar->on(wire::Body::Heartbeat, [](auto const&) { return std::nullopt; });

    CHECK(harness.event(20'000) ==
          "FAILED: the sidecar went away: no answer to a heartbeat in 250 ms");
    CHECK(harness.state().attached == 0);
}

TEST_CASE("a request that is not answered in time fails, and is taken back") {
    Harness harness(200);
    harness.sidecar->on(wire::Body::OpenSession, [](auto const&) { return std::nullopt; });

    CHECK(harness.open() == DKV_DEADLINE_EXCEEDED);
    CHECK(why() ==
          "the sidecar at " + harness.endpoint.name() + " did not answer OpenSession in time");
    auto const taken_back = harness.sidecar->wait_for(wire::Body::CloseSession);
    REQUIRE(taken_back);
    CHECK(taken_back->body.AsCloseSession()->session == harness.session_id());
    CHECK(harness.session == nullptr);
}

TEST_CASE("an engine says goodbye") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    auto* const engine = open_engine(endpoint.name());
    REQUIRE(dkv_engine_wait_attached(engine, 5000) == DKV_OK);

    dkv_engine_close(engine);

    CHECK(sidecar.count(wire::Body::Goodbye) == 1);
}

TEST_CASE("a child after fork is refused, and does the parent no harm") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    auto event = sized<dkv_event>();
    pid_t const child = ::fork();
    if (child == 0) {
        bool const refused = dkv_engine_wait_attached(harness.engine, 1) == DKV_BAD_STATE &&
                             dkv_session_poll(harness.session, &event, 0) == DKV_BAD_STATE &&
                             std::string(dkv_last_error()) ==
                                 "this engine belongs to the process before fork(): open one here";
        dkv_session_close(harness.session, nullptr);
        dkv_engine_close(harness.engine);
        ::_exit(refused ? 0 : 1);
    }

    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(dkv_session_poll(harness.session, &event, 0) == DKV_OK);
    CHECK_MESSAGE(harness.report(0) == DKV_OK, why());
}

TEST_CASE("an engine refuses a geometry or an endpoint that cannot be") {
    auto options = sized<dkv_engine_options>();
    dkv_engine* engine = nullptr;
    options.endpoint = "ipc:///tmp/dkv-test.sock";
    options.geometry = {2, 3, 2, 64, DKV_F32};
    CHECK(dkv_engine_open(&options, &engine) == DKV_INVALID_ARGUMENT);
    CHECK(why() == "q_heads is 3, no multiple of kv_heads 2");
    options.geometry = {2, 4, 2, 64, static_cast<dkv_dtype>(0)};
    CHECK(dkv_engine_open(&options, &engine) == DKV_INVALID_ARGUMENT);
    CHECK(why() == "dtype is 0, not in 1 … 3");
    options.geometry.dtype = DKV_F32;
    options.endpoint = "carrier-pigeon";
    CHECK(dkv_engine_open(&options, &engine) == DKV_INVALID_ARGUMENT);
    CHECK(why().starts_with("endpoint 'carrier-pigeon' is neither"));
    options.struct_bytes = 4;
    CHECK(dkv_engine_open(&options, &engine) == DKV_INVALID_ARGUMENT);
    CHECK(why().starts_with("options->struct_bytes is 4, not "));
    CHECK(dkv_engine_open(nullptr, &engine) == DKV_INVALID_ARGUMENT);
    CHECK(why() == "options is NULL");
    CHECK(engine == nullptr);
}
