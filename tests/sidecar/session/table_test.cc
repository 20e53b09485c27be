#include "sidecar/session/table.h"

#include <fcntl.h>
#include <poll.h>

#include <doctest/doctest.h>

#include "tests/sidecar/session/fixture.h"
#include "tests/support/child_process.h"

namespace dkv {
namespace {

using test::kEngine;
using test::refused;
using test::TableFixture;

TEST_CASE("a repeated hello changes nothing; an earlier generation is refused") {
    TableFixture t;
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(7)));
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(7)));
    CHECK(t.table.facts().instances == 1);

    auto old = TableFixture::hello_of(7);
    old.generation = 0;
    auto const error = refused(t.table.hello(t.caller(), old));
    CHECK(error.code == ErrorCode::BadState);
    CHECK(error.message == "generation 0 of engine 0x0000000000000007 comes after generation 1");
}

TEST_CASE("a later generation that is refused leaves the earlier one attached as it was") {
    TableFixture t;
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(7)));
    auto later = TableFixture::hello_of(7);
    later.generation = 2;
    later.device = "GPU-0";
    auto elsewhere = t.caller();
    elsewhere.peer = "another connection";

    CHECK(refused(t.table.hello(elsewhere, later)).code == ErrorCode::Unsupported);

    CHECK(t.table.heartbeat(t.caller(), 7));
    CHECK_FALSE(t.table.heartbeat(elsewhere, 7));
}

TEST_CASE("a later generation drops what the earlier one had") {
    TableFixture t;
    t.open(1);
    CHECK(t.table.facts().mapped_bytes > 0);
    auto again = TableFixture::hello_of(kEngine);
    again.generation = 2;

    REQUIRE(t.table.hello(t.caller(), again));

    CHECK(t.table.facts().mapped_bytes == 0);
    CHECK(t.table.facts().sessions_open == 0);
    CHECK(t.ears.heard("peer/1: failed: the engine attached again"));
}

TEST_CASE("hello refuses what cannot be") {
    TableFixture t;
    CHECK(refused(t.table.hello(t.caller(), TableFixture::hello_of(0))).message ==
          "instance 0 is nobody: choose a random number");
    auto wrong = TableFixture::hello_of(7);
    wrong.geometry.q_heads = 3;
    CHECK(refused(t.table.hello(t.caller(), wrong)).code == ErrorCode::InvalidArgument);
    auto huge = TableFixture::hello_of(7);
    huge.geometry = {.layers = 1024, .q_heads = 1024, .kv_heads = 1024, .head_dim = 8};
    CHECK(refused(t.table.hello(t.caller(), huge)).code == ErrorCode::LimitExceeded);
}

TEST_CASE("an engine that is not attached is told to say hello") {
    TableFixture t;
    auto const error = refused(t.table.heartbeat(t.caller(), 9));
    CHECK(error.code == ErrorCode::UnknownInstance);
    CHECK(error.message == "no engine 0x0000000000000009 is attached: it has to say hello");
}

TEST_CASE("every limit of the table is reached") {
    auto config = TableFixture::small_config();
    config.limits.instances_max = 1;
    config.limits.sessions_max = 2;
    config.limits.regions_max = 1;
    config.limits.tokens_max = 500;
    config.limits.sessions_remembered_max = 2;
    TableFixture t(config);
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine)));

    CHECK(refused(t.table.hello(t.caller(), TableFixture::hello_of(12))).message ==
          "1 engines are attached, which is the limit");
    CHECK(refused(t.table.open_session(t.caller(), kEngine, {.session = 1, .prompt_tokens = 501}))
              .message == "the prompt has 501 tokens; the limit is 500");
    REQUIRE(t.table.open_session(t.caller(), kEngine, {.session = 1, .prompt_tokens = 100}));
    REQUIRE(t.table.open_session(t.caller(), kEngine, {.session = 2, .prompt_tokens = 100}));
    CHECK(refused(t.table.open_session(t.caller(), kEngine, {.session = 3, .prompt_tokens = 100}))
              .message == "2 sessions are open, which is the limit");
    REQUIRE(t.lend(t.prompt.memory, false));
    test::EngineMemory other(4096);
    CHECK(refused(t.lend(other, false)).code == ErrorCode::LimitExceeded);

    for (std::uint64_t session = 1; session <= 3; ++session) {
        if (session == 3)
            REQUIRE(t.table.open_session(t.caller(), kEngine, {.session = 3, .prompt_tokens = 9}));
        REQUIRE(t.table.close_session(t.caller(), kEngine, session, ""));
    }
    auto const remembered = t.table.sessions({}, t.now);
    REQUIRE(remembered);
    REQUIRE(remembered.value().size() == 2);
    CHECK(remembered.value()[0].session == 2);
}

TEST_CASE("layers that wait have a limit") {
    auto config = TableFixture::small_config();
    config.limits.jobs_queued_max = 1;
    // A worker that is held up in its first moment: what is posted waits.
    std::mutex gate;
    std::unique_lock held(gate);
    std::atomic<bool> first = true;
    TableFixture t(config, [&] {
        if (!first.exchange(false)) std::lock_guard const wait(gate);
        return make_cpu_backend(1);
    });
    t.open(1);

    auto const error = refused(t.table.layer_ready(t.caller(), kEngine, 1, t.layer(0)));
    held.unlock();

    CHECK(error.code == ErrorCode::LimitExceeded);
    CHECK(error.message == "this engine has 1 layers waiting, which is the limit");
}

TEST_CASE("an engine whose process dies is dropped at once, with everything it had") {
    TableFixture t;
    ::fcntl(t.prompt.memory.fd(), F_SETFD, 0);  // The process has it under the same number.
    test::ChildProcess child;
    t.process.pid = static_cast<pid_t>(child.pid());
    // The pid that the message tells may be one of another pid namespace: the kernel's counts.
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine, 1)));
    t.source = t.lend(t.prompt.memory, false).value();
    REQUIRE(t.table.open_session(t.caller(), kEngine, {.session = 1, .prompt_tokens = 200}));
    child.kill();
    pollfd death{.fd = t.table.death_fd(), .events = POLLIN, .revents = 0};
    REQUIRE(::poll(&death, 1, 10'000) == 1);
    t.table.finish_work(t.now);

    auto const facts = t.table.facts();
    CHECK(facts.instances == 0);
    CHECK(facts.sessions_open == 0);
    CHECK(facts.mapped_bytes == 0);
    CHECK(facts.savings.sessions_failed == 1);
    REQUIRE(facts.gone.size() == 1);
    CHECK(facts.gone[0] == "0x000000000000000b (pid " + std::to_string(child.pid()) +
                               ", test 1.0, tiny) process ended; 1 open sessions dropped");
    CHECK(t.ears.heard(NoticeKind::InstanceGone));
    CHECK(!t.table.instances(t.now).at(0).alive);
    auto const sessions = t.table.sessions({.instance = kEngine}, t.now);
    REQUIRE(sessions);
    CHECK(sessions.value().at(0).error == "the engine process ended");
    CHECK(refused(t.table.heartbeat(t.caller(), kEngine)).code == ErrorCode::UnknownInstance);
}

TEST_CASE("an engine is dropped after ten silent heartbeats, whether its process lives or not") {
    TableFixture t;
    t.process.pid = 0;  // Of another pid namespace: it cannot be watched.
    SUBCASE("a process that cannot be watched") {}
    SUBCASE("a process that lives") {
        t.process = test::own_process();
    }
    auto const pid = std::to_string(t.process.pid);
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine)));
    t.now += 900;
    REQUIRE(t.table.heartbeat(t.caller(), kEngine));
    t.now += 1000;
    t.table.tick(t.now);
    CHECK(t.table.facts().instances == 1);

    t.now += 1;
    t.table.tick(t.now);

    CHECK(t.table.facts().instances == 0);
    CHECK(t.table.facts().gone.at(0) ==
          "0x000000000000000b (pid " + pid +
              ", test 1.0, tiny) was silent for 1000 ms; 0 open sessions dropped");
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine)));
    CHECK(t.table.facts().gone.empty());
}

TEST_CASE("an engine belongs to the connection that said hello, and to the process behind it") {
    TableFixture t;
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine)));
    auto other = t.caller();
    other.peer = "another connection";

    auto const refusal = refused(t.table.heartbeat(other, kEngine));
    CHECK(refusal.code == ErrorCode::PermissionDenied);
    CHECK(refusal.message ==
          "engine 0x000000000000000b is attached over another connection: it has to say hello over "
          "this one");
    CHECK(t.table.heartbeat(t.caller(), kEngine));

    auto again = TableFixture::hello_of(kEngine);
    ++again.generation;
    auto foreign = other;
    foreign.process->pid += 1;
    CHECK(refused(t.table.hello(foreign, again)).message ==
          "engine 0x000000000000000b belongs to another process: choose another random number");
    REQUIRE(t.table.hello(other, again));
    CHECK(t.table.heartbeat(other, kEngine));
    CHECK(refused(t.table.heartbeat(t.caller(), kEngine)).code == ErrorCode::PermissionDenied);
}

TEST_CASE("a process attaches no more engines than its share") {
    Config config;
    config.limits.instances_per_process_max = 2;
    TableFixture t(config);
    for (std::uint64_t id = 1; id <= 2; ++id)
        REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(id)));

    auto const refusal = refused(t.table.hello(t.caller(), TableFixture::hello_of(3)));

    CHECK(refusal.code == ErrorCode::LimitExceeded);
    CHECK(refusal.message == "process " + std::to_string(t.process.pid) +
                                 " has 2 engines attached, which is the limit");
    t.process.pid += 1;
    CHECK(t.table.hello(t.caller(), TableFixture::hello_of(3)));
}

TEST_CASE("an operator detaches an engine: its memory is let go, its place is free") {
    TableFixture t;
    t.open(1);
    REQUIRE(t.table.facts().mapped_bytes > 0);

    REQUIRE(t.table.detach(t.caller(), kEngine));

    CHECK(t.table.facts().instances == 0);
    CHECK(t.table.facts().mapped_bytes == 0);
    CHECK(refused(t.table.heartbeat(t.caller(), kEngine)).code == ErrorCode::UnknownInstance);
    CHECK(refused(t.table.detach(t.caller(), kEngine)).message ==
          "no engine 0x000000000000000b is attached");
}

TEST_CASE("an operator's policy goes before an engine's wish, an instance's before all") {
    TableFixture t;
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine)));
    PolicyRequest const wish{.name = "snapkv", .capacity = 40};
    std::uint64_t session = 0;
    auto const policy_with = [&](std::optional<PolicyRequest> const& asked) {
        auto const opened = t.table.open_session(
            t.caller(), kEngine,
            {.session = ++session, .prompt_tokens = 100, .progressive = true, .wish = asked});
        REQUIRE(opened);
        return opened.value().policy;
    };

    CHECK(policy_with(std::nullopt).name == "dynamickv");
    CHECK(policy_with(wish).name == "snapkv");
    CHECK(policy_with(PolicyRequest{.name = "", .capacity = 77}).name == "dynamickv");
    CHECK(policy_with(PolicyRequest{.name = "", .capacity = 77}).capacity == 77);
    auto const by_head =
        policy_with(PolicyRequest{.name = "", .granularity = Granularity::LayerHead});
    CHECK(by_head.granularity == Granularity::LayerHead);
    CHECK(by_head.capacity == TableFixture::small_config().policy.capacity);

    REQUIRE(t.table.set_policy(0, PolicyRequest{.name = "pyramidkv"}));
    CHECK(policy_with(wish).name == "pyramidkv");
    CHECK(t.table.facts().policy.source == PolicySource::All);

    REQUIRE(t.table.set_policy(kEngine, PolicyRequest{.name = "streamingllm"}));
    CHECK(policy_with(wish).name == "streamingllm");
    CHECK(t.table.instances(t.now).at(0).policy.source == PolicySource::Instance);

    REQUIRE(t.table.set_policy(kEngine, std::nullopt));
    CHECK(policy_with(wish).name == "pyramidkv");
    REQUIRE(t.table.set_policy(0, std::nullopt));
    CHECK(policy_with(wish).name == "snapkv");

    CHECK(refused(t.table.set_policy(0, PolicyRequest{.name = "nosuch"})).code ==
          ErrorCode::NotFound);
    CHECK(refused(t.table.set_policy(5, wish)).message ==
          "no engine 0x0000000000000005 is attached");
    CHECK(refused(t.table.open_session(t.caller(), kEngine,
                                       {.session = 99,
                                        .prompt_tokens = 100,
                                        .progressive = true,
                                        .wish = PolicyRequest{.name = "dynamickv", .kernel = 4}}))
              .code == ErrorCode::InvalidArgument);
}

namespace {

/// Every layer of the fixture's engine alike.
std::shared_ptr<Profile> profile_of(char const* name) {
    auto const layers = TableFixture::hello_of(kEngine).geometry.layers;
    auto profile = std::make_shared<Profile>(
        Profile{.name = name, .layers = layers, .heads = 1, .weights = {}, .kernel = 21});
    profile->weights.assign(layers, 1);
    return profile;
}

}  // namespace

TEST_CASE(
    "a wish without a name is the sidecar's policy, and its profile for one that looks for one") {
    auto const chosen = [&](PolicyRequest const& configured) {
        auto config = TableFixture::small_config();
        config.policy = configured;
        TableFixture t(config);
        REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine)));
        auto const opened = t.table.open_session(
            t.caller(), kEngine,
            {.session = 1,
             .prompt_tokens = 100,
             .progressive = true,
             .wish = PolicyRequest{.name = "", .profile = profile_of("found")}});
        REQUIRE(opened);
        return opened.value().policy;
    };
    auto const by_auto = chosen({.name = "auto", .capacity = 41});
    CHECK(by_auto.capacity == 41);
    REQUIRE(by_auto.profile);
    CHECK(by_auto.profile->name == "found");

    auto const by_snapkv = chosen({.name = "snapkv", .capacity = 42});
    CHECK(by_snapkv.name == "snapkv");
    CHECK(by_snapkv.capacity == 42);
    CHECK_FALSE(by_snapkv.profile);

    auto const own = chosen({.name = "auto", .capacity = 43, .profile = profile_of("operator's")});
    CHECK(own.profile->name == "operator's");
}

TEST_CASE("an engine's profile holds whoever chose the size, unless the operator brings one") {
    TableFixture t;
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(kEngine)));
    PolicyRequest wish{.name = "dynamickv", .capacity = 40, .profile = profile_of("engine's")};
    std::uint64_t session = 0;
    auto const policy = [&] {
        auto const opened = t.table.open_session(
            t.caller(), kEngine,
            {.session = ++session, .prompt_tokens = 100, .progressive = true, .wish = wish});
        REQUIRE(opened);
        return opened.value().policy;
    };
    CHECK(policy().profile->name == "engine's");

    REQUIRE(t.table.set_policy(0, PolicyRequest{.name = "dynamickv", .capacity = 50}));
    CHECK(policy().profile->name == "engine's");
    CHECK(policy().capacity == 50);
    CHECK(policy().kernel == 21);

    wish.name = "auto";  // The profile came unasked: who names dynamickv gets the paper's rule.
    CHECK_FALSE(policy().profile);
    wish.name = "";  // As dkv.hf sends the one that it finds.
    CHECK_FALSE(policy().profile);
    REQUIRE(t.table.set_policy(0, PolicyRequest{.name = "auto", .capacity = 50}));
    CHECK(policy().profile->name == "engine's");
    wish.name = "auto";
    CHECK(policy().profile->name == "engine's");

    REQUIRE(t.table.set_policy(kEngine, PolicyRequest{.name = "dynamickv",
                                                      .capacity = 60,
                                                      .kernel = 5,
                                                      .profile = profile_of("operator's")}));
    CHECK(policy().profile->name == "operator's");
    CHECK(policy().capacity == 60);
    CHECK(policy().kernel == 5);
}

}  // namespace
}  // namespace dkv
