#include "protocol/sdk/controller.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

#include <doctest/doctest.h>

#include "protocol/keys/key_files.h"
#include "tests/support/fake_sidecar.h"
#include "tests/support/results.h"

using namespace dkv;
using namespace dkv::test;
using namespace std::chrono_literals;
using sdk::Controller;

namespace {

std::unique_ptr<Controller> controller(std::string const& endpoint,
                                       std::chrono::milliseconds timeout = 5000ms) {
    auto connected = Controller::connect(endpoint, timeout);
    REQUIRE(connected);
    return std::move(connected).value();
}

wire::BodyUnion notice(std::string kind) {
    wire::NoticeT notice;
    notice.kind = std::move(kind);
    return body(std::move(notice));
}

}  // namespace

TEST_CASE("a controller asks and is answered") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.on(wire::Body::GetStatus, [](auto const&) {
        wire::StatusInfoT status;
        status.version = "7.8.9";
        return body(std::move(status));
    });
    sidecar.on(wire::Body::SetPolicy, [](auto const& request) {
        return request.body.AsSetPolicy()->policy
                   ? failure(wire::ErrorCode::NotFound, "no policy is called 'best'")
                   : body(wire::DoneT{});
    });
    auto const line = controller(endpoint.name());

    auto const status = line->status();
    REQUIRE(status);
    CHECK(status.value().version == "7.8.9");
    CHECK(line->set_policy(7, nullptr));
    CHECK(sidecar.wait_for(wire::Body::SetPolicy)->body.AsSetPolicy()->instance == 7);
    wire::PolicyT wish;
    wish.name = "best";
    auto const refused = line->set_policy(0, &wish);
    REQUIRE(!refused);
    CHECK(refused.error().code == ErrorCode::NotFound);
    CHECK(refused.error().message == "no policy is called 'best'");
    CHECK(line->stop());
    auto const wrong = line->instances();
    REQUIRE(!wrong);
    CHECK(wrong.error().code == ErrorCode::CorruptData);
}

TEST_CASE("signals to its process disturb no question") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.on(wire::Body::GetStatus, [](auto const&) { return body(wire::StatusInfoT{}); });
    struct sigaction action {};
    action.sa_handler = [](int) {};  // Without SA_RESTART: what is interrupted fails with EINTR.
    struct sigaction before {};
    ::sigaction(SIGUSR1, &action, &before);

    auto const asking = ::pthread_self();
    std::atomic<bool> over = false;
    std::thread storm([&] {
        while (!over) {
            ::pthread_kill(asking, SIGUSR1);
            std::this_thread::yield();
        }
    });
    std::string failed;
    for (int connection = 0; connection < 20; ++connection) {
        auto const another = controller(endpoint.name());
        for (int question = 0; question < 100; ++question)
            if (auto const status = another->status(); !status) failed = status.error().message;
    }
    over = true;
    storm.join();
    ::sigaction(SIGUSR1, &before, nullptr);

    CHECK(failed == "");
}

TEST_CASE("without a sidecar a controller knows at once") {
    TemporaryEndpoint const endpoint;
    auto const begin = std::chrono::steady_clock::now();
    auto const nobody = controller(endpoint.name(), 60'000ms)->status();
    REQUIRE(!nobody);
    CHECK(nobody.error().code == ErrorCode::Unavailable);
    CHECK(nobody.error().message ==
          "no sidecar answers at " + endpoint.name() + "; start one with dkvd");
    CHECK(std::chrono::steady_clock::now() - begin < 20s);
}

TEST_CASE("over TCP a controller has keys, and says what it lacks") {
    TempDir const folder;
    auto const pair = keys::make_pair();
    REQUIRE(pair);
    sdk::KeyFiles const files{folder / "dkv.key_secret", folder / "dkv.key"};
    auto const refusal = [&](std::string const& endpoint) {
        auto const answer = Controller::connect(endpoint, 60'000ms, files).value()->status();
        REQUIRE(!answer);
        return answer.error();
    };
    CHECK(refusal("tcp://127.0.0.1:9").message == "tcp://127.0.0.1:9 takes a key of yours, and '" +
                                                      files.secret +
                                                      "' is not there: dkv keys makes it");
    REQUIRE(keys::write_pair(folder.path(), pair.value()));
    CHECK(refusal("tcp://127.0.0.1:9").message ==
          "no sidecar answers at tcp://127.0.0.1:9; start one with dkvd");
    std::filesystem::remove(files.sidecar);
    CHECK(refusal("tcp://127.0.0.1:9").message ==
          "the public key of the sidecar at tcp://127.0.0.1:9 is not known: copy its dkv.key to '" +
              files.sidecar + "', or name the file with --sidecar-key");

    ::setenv("XDG_CONFIG_HOME", folder.path().c_str(), 1);
    REQUIRE(keys::write_pair(folder / "dkv", pair.value()));
    auto const by_host = Controller::connect("tcp://[::1]:9", 60'000ms).value()->status();
    ::unsetenv("XDG_CONFIG_HOME");
    CHECK(by_host.error().message ==
          "the public key of the sidecar at tcp://[::1]:9 is not known: copy its dkv.key to '" +
              (folder / "dkv/sidecars/::1.key") + "', or name the file with --sidecar-key");
}

TEST_CASE("a sidecar over TCP that takes no keys is named") {
    TempDir const folder;
    REQUIRE(keys::write_pair(folder.path(), keys::make_pair().value()));
    zmq::context_t context;
    zmq::socket_t open(context, zmq::socket_type::router);
    open.bind("tcp://127.0.0.1:*");
    auto const endpoint = open.get(zmq::sockopt::last_endpoint);

    auto const answer =
        Controller::connect(endpoint, 60'000ms, {folder / "dkv.key_secret", folder / "dkv.key"})
            .value()
            ->status();

    REQUIRE(!answer);
    CHECK(answer.error().code == ErrorCode::PermissionDenied);
    // Either side may be the first to hang up.
    CHECK(answer.error().message.starts_with("the sidecar at " + endpoint + " "));
    CHECK(answer.error().message.find(" takes no keys") != std::string::npos);
}

TEST_CASE("a sidecar that does not answer runs into the controller's deadline") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.on(wire::Body::GetSavings, [](auto const&) { return std::nullopt; });
    auto const line = controller(endpoint.name(), 50ms);
    auto const late = line->savings();
    REQUIRE(!late);
    CHECK(late.error().code == ErrorCode::DeadlineExceeded);
    CHECK(late.error().message == "the sidecar at " + endpoint.name() + " did not answer in 50 ms");
}

TEST_CASE("a controller refuses a sidecar of another version") {
    TemporaryEndpoint const endpoint;
    FakeSidecar sidecar(endpoint.name());
    sidecar.set_version(9);
    auto const other = controller(endpoint.name())->stop();
    REQUIRE(!other);
    CHECK(other.error().code == ErrorCode::VersionMismatch);
    CHECK(other.error().message == "message speaks protocol version 9, this side speaks 1");
}

TEST_CASE("notices arrive in order, even while a question is open, until the sidecar goes") {
    TemporaryEndpoint const endpoint;
    auto sidecar = std::make_unique<FakeSidecar>(endpoint.name());
    auto const line = controller(endpoint.name());
    CHECK(!line->next_notice(0ms));
    // The fake sidecar speaks to whoever said hello; a controller does not, so it follows a
    // request.
    sidecar->follow(wire::Body::Subscribe);
    REQUIRE(line->subscribe());
    CHECK(!line->next_notice(0ms).value());

    sidecar->say(notice("session_opened"));
    sidecar->say(notice("session_closed"));
    CHECK(line->stop());
    auto const first = line->next_notice(5000ms);
    REQUIRE(first);
    CHECK(first.value()->kind == "session_opened");
    CHECK(line->next_notice(5000ms).value()->kind == "session_closed");

    sidecar.reset();
    auto const gone = line->next_notice(5000ms);
    REQUIRE(!gone);
    CHECK(gone.error().code == ErrorCode::Unavailable);
    CHECK(gone.error().message == "the sidecar at " + endpoint.name() + " went away");
}

TEST_CASE("a controller refuses an endpoint that is none") {
    auto const none = Controller::connect("here", 1ms);
    REQUIRE(!none);
    CHECK(none.error().code == ErrorCode::InvalidArgument);
    auto const inproc = controller("inproc://here")->status();
    REQUIRE(!inproc);
    CHECK(inproc.error().code == ErrorCode::Unsupported);
}
