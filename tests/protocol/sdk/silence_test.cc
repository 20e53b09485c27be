// A sidecar that does not answer costs one prompt its deadline, not every one.
#include "protocol/sdk/silence.h"

#include <chrono>
#include <string>
#include <thread>

#include <doctest/doctest.h>

#include "tests/protocol/sdk/harness.h"

using namespace dkv;
using namespace dkv::test;
using dkv::sdk::Deadline;
using dkv::sdk::Silence;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

constexpr std::uint32_t kMinute = 60'000;  // The longest interval that an engine agrees to.
Deadline const kStart{std::chrono::hours(1)};

FakeSidecar::Answer silent() {
    return [](auto const&) { return std::nullopt; };
}

/// A sidecar whose heartbeats tell nothing, because there are none in a test's time.
struct Quiet {
    TemporaryEndpoint endpoint;
    FakeSidecar sidecar{endpoint.name()};
    dkv_engine* engine = nullptr;

    explicit Quiet(std::uint32_t timeout_ms) {
        sidecar.set_heartbeat_ms(kMinute);
        engine = open_engine(endpoint.name(), timeout_ms);
        REQUIRE_MESSAGE(dkv_engine_wait_attached(engine, 5000) == DKV_OK, why());
    }
    ~Quiet() { dkv_engine_close(engine); }
    Quiet(Quiet const&) = delete;
    Quiet& operator=(Quiet const&) = delete;

    dkv_status open() {
        auto options = sized<dkv_session_options>();
        options.prompt_tokens = kTokens;
        auto plan = sized<dkv_session_plan>();
        dkv_session* session = nullptr;
        auto const status = dkv_session_open(engine, &options, &session, &plan);
        dkv_session_close(session, nullptr);
        return status;
    }
    int attached() {
        auto state = sized<dkv_engine_state>();
        REQUIRE(dkv_engine_get_state(engine, &state) == DKV_OK);
        return state.attached;
    }
};

}  // namespace

TEST_CASE("nothing is silence before a question was open for a while") {
    Silence silence;
    CHECK(!silence.run_out(kStart, kStart + seconds(10)));  // Work took long, nothing was asked.

    silence.ask(kStart);
    CHECK(!silence.run_out(kStart - seconds(5), kStart + milliseconds(249)));
    silence.hear();
    silence.ask(kStart + seconds(1));
    CHECK(!silence.run_out(kStart, kStart + seconds(1)));
    CHECK(!silence.holds(kStart + seconds(1)));
}

TEST_CASE("a hung sidecar is held until anything is heard, and asked at growing intervals") {
    Silence silence;
    silence.ask(kStart);
    REQUIRE(silence.run_out(kStart, kStart + seconds(2)));

    auto now = kStart + seconds(2);
    for (int const step : {1, 2, 4, 8, 16, 30, 30}) {
        CHECK(silence.next_probe(now) - now == seconds(step));
        CHECK(silence.reason("ipc://x", now).message ==
              "the sidecar at ipc://x has not answered for " +
                  std::to_string((now - kStart) / seconds(1)) +
                  " s: it is asked again in the background, next in " + std::to_string(step) +
                  " s");
        now += seconds(step);
        CHECK(silence.holds(now));
    }
    CHECK(silence.hear());
    CHECK(!silence.holds(now));
    CHECK(!silence.hear());
}

TEST_CASE("heartbeats that are due sooner are the questions, and leave the interval as it is") {
    Silence silence;
    silence.hang(kStart, kStart + milliseconds(300));
    CHECK(silence.next_probe(kStart, milliseconds(50)) == kStart + milliseconds(50));
    CHECK(silence.next_probe(kStart, milliseconds(50)) == kStart + milliseconds(50));
    CHECK(silence.next_probe(kStart) == kStart + seconds(1));
    CHECK(silence.reason("ipc://x", kStart + milliseconds(400))
              .message.starts_with("the sidecar at ipc://x has not answered for 400 ms: "));
}

TEST_CASE("a request without an answer from a sidecar that lives is tried again after a while") {
    Silence silence;
    silence.ask(kStart);
    silence.hear();
    auto now = kStart + seconds(2);
    CHECK(!silence.run_out_unanswered("BindBuffers", kStart, now));
    CHECK(!silence.run_out_unanswered("BindBuffers", kStart,
                                      now));  // Of a second prompt at the same time.

    CHECK(silence.holds(now + milliseconds(999)));
    CHECK(!silence.holds(now + seconds(1)));
    CHECK(silence.reason("ipc://x", now).message ==
          "the sidecar at ipc://x answers heartbeats and did not answer BindBuffers in time: the "
          "first prompt in 1 s or later asks it again");
    now += seconds(1);
    silence.run_out_unanswered("BindBuffers", now, now);
    CHECK(silence.holds(now + milliseconds(1999)));
    CHECK(!silence.holds(now + seconds(2)));
    silence.run_out_unanswered("BindBuffers", now, now);
    silence.answer();
    CHECK(!silence.holds(now));
}

TEST_CASE("after one deadline sessions are refused without waiting, until the sidecar answers") {
    Quiet quiet(300);
    quiet.sidecar.on(wire::Body::OpenSession, silent());
    quiet.sidecar.on(wire::Body::Heartbeat, silent());
    quiet.sidecar.on(wire::Body::CloseSession, silent());

    CHECK(quiet.open() == DKV_DEADLINE_EXCEEDED);
    CHECK(quiet.attached() == 0);
    for (int again = 0; again < 20; ++again)
        CHECK(quiet.open() == DKV_DEADLINE_EXCEEDED);

    // Only the first one was sent.
    CHECK(quiet.sidecar.count(wire::Body::OpenSession) == 1);
    CHECK(quiet.sidecar.wait_for(wire::Body::Heartbeat));
    quiet.sidecar.on(wire::Body::OpenSession, {});
    quiet.sidecar.on(wire::Body::Heartbeat, {});
    CHECK_MESSAGE(dkv_engine_wait_attached(quiet.engine, 20'000) == DKV_OK, why());
    CHECK(quiet.attached() == 1);
    CHECK_MESSAGE(quiet.open() == DKV_OK, why());
    CHECK(quiet.sidecar.count(wire::Body::Hello) == 1);
}

TEST_CASE("a refusal says since when, and when the sidecar is asked next") {
    Harness harness(300);
    harness.sidecar->on(wire::Body::OpenSession, silent());
    harness.sidecar->on(wire::Body::Heartbeat, silent());
    harness.sidecar->on(wire::Body::CloseSession, silent());
    harness.sidecar->on(wire::Body::Hello, silent());
    REQUIRE(harness.open() != DKV_OK);  // At its deadline, or after five heartbeats.

    CHECK(harness.open() == DKV_DEADLINE_EXCEEDED);

    CHECK(
        why().starts_with("the sidecar at " + harness.endpoint.name() + " has not answered for "));
    CHECK(why().find(": it is asked again in the background, next ") != std::string::npos);
    CHECK(std::string(harness.state().last_error) == why());
}

TEST_CASE("a late answer is one: the next session is opened") {
    Quiet quiet(300);
    quiet.sidecar.on_next(wire::Body::OpenSession, 1, [](auto const&) {
        std::this_thread::sleep_for(milliseconds(600));  // The whole loop is stuck.
        return failure(wire::ErrorCode::LimitExceeded, "too late to matter");
    });
    CHECK(quiet.open() == DKV_DEADLINE_EXCEEDED);

    CHECK_MESSAGE(dkv_engine_wait_attached(quiet.engine, 20'000) == DKV_OK, why());

    CHECK_MESSAGE(quiet.open() == DKV_OK, why());
}

TEST_CASE("a sidecar that works for long is not one that hangs") {
    Harness harness(400);  // A heartbeat every 50 ms, which are answered.
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);
    auto result = sized<dkv_result>();
    CHECK(dkv_session_finish(harness.session, 400, &result) == DKV_DEADLINE_EXCEEDED);
    CHECK(why() == "the sidecar did not commit within 400 ms");
    dkv_session_close(harness.session, nullptr);

    CHECK_MESSAGE(harness.open() == DKV_OK, why());
}

TEST_CASE("a sidecar that falls silent while it works is found out at the end of the prompt") {
    Harness harness(400);
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    harness.sidecar->on(wire::Body::Hello, silent());
    harness.sidecar->on(wire::Body::LayerReady, silent());
    harness.sidecar->on(wire::Body::Heartbeat, silent());
    REQUIRE(harness.report(1) == DKV_OK);
    auto result = sized<dkv_result>();
    CHECK(dkv_session_finish(harness.session, 5000, &result) == DKV_UNAVAILABLE);
    CHECK(why() == "the sidecar went away: no answer to a heartbeat in 250 ms");
    dkv_session_close(harness.session, nullptr);

    CHECK(harness.open() == DKV_DEADLINE_EXCEEDED);
    CHECK(
        why().starts_with("the sidecar at " + harness.endpoint.name() + " has not answered for "));
    CHECK(harness.sidecar->count(wire::Body::OpenSession) == 1);
}

TEST_CASE("a request that a living sidecar does not answer does not hold every prompt up") {
    for (auto const kind : {wire::Body::OpenSession, wire::Body::RegisterRegion}) {
        CAPTURE(wire::EnumNameBody(kind));
        Harness harness(300);
        harness.sidecar->on(kind, silent());
        CHECK(harness.open() == DKV_DEADLINE_EXCEEDED);
        CHECK(harness.state().attached == 1);

        CHECK(harness.open() == DKV_DEADLINE_EXCEEDED);
        CHECK(why().starts_with("the sidecar at " + harness.endpoint.name() +
                                " answers heartbeats and did not answer " +
                                wire::EnumNameBody(kind) + " in time: the first prompt "));
        CHECK(harness.sidecar->count(kind) == 1);

        harness.sidecar->on(kind, {});
        int tries = 0;
        while (harness.open() != DKV_OK && ++tries < 1000)
            std::this_thread::sleep_for(milliseconds(20));
        CHECK(harness.session != nullptr);
    }
}

TEST_CASE("a hello without an answer costs one deadline, too") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.on(wire::Body::Hello, silent());
    auto* const engine = open_engine(endpoint.name(), 300);
    auto options = sized<dkv_session_options>();
    options.prompt_tokens = kTokens;
    auto plan = sized<dkv_session_plan>();
    dkv_session* session = nullptr;
    CHECK(dkv_session_open(engine, &options, &session, &plan) == DKV_DEADLINE_EXCEEDED);

    for (int again = 0; again < 20; ++again)
        CHECK(dkv_session_open(engine, &options, &session, &plan) == DKV_DEADLINE_EXCEEDED);

    CHECK(why().starts_with("the sidecar at " + endpoint.name() + " has not answered for "));
    CHECK(sidecar.count(wire::Body::Hello) <= 2);
    sidecar.on(wire::Body::Hello, {});
    CHECK_MESSAGE(dkv_engine_wait_attached(engine, 20'000) == DKV_OK, why());
    CHECK_MESSAGE(dkv_session_open(engine, &options, &session, &plan) == DKV_OK, why());
    dkv_session_close(session, nullptr);
    dkv_engine_close(engine);
}

TEST_CASE("a hung sidecar that ends is gone, and its successor is found at once") {
    Harness harness(300);
    harness.sidecar->on(wire::Body::Hello, silent());
    harness.sidecar->on(wire::Body::OpenSession, silent());
    harness.sidecar->on(wire::Body::Heartbeat, silent());
    harness.sidecar->on(wire::Body::CloseSession, silent());
    REQUIRE(harness.open() != DKV_OK);  // At its deadline, or after five heartbeats.

    harness.sidecar.reset();
    harness.sidecar = std::make_unique<FakeSidecar>(harness.endpoint.name(), 2);
    harness.sidecar->set_opened(compressing());

    CHECK_MESSAGE(dkv_engine_wait_attached(harness.engine, 20'000) == DKV_OK, why());
    CHECK_MESSAGE(harness.open() == DKV_OK, why());
    CHECK(harness.state().boot_id == 2);
}
