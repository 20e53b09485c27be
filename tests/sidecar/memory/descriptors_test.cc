#include "sidecar/memory/descriptors.h"

#include <thread>

#include <doctest/doctest.h>
#include <sys/eventfd.h>

#include "tests/support/results.h"

namespace dkv {
namespace {

UniqueFd a_file() {
    return UniqueFd(::eventfd(0, EFD_CLOEXEC));
}

TEST_CASE("a descriptor is good once, for its own instance and ticket") {
    Descriptors waiting({.waited_for = std::chrono::milliseconds(1)});
    std::atomic<bool> cancelled = false;
    REQUIRE(waiting.put(1, 7, a_file()));
    CHECK(!waiting.put(1, 7, a_file()));
    CHECK(waiting.put(1, 0, a_file()).error().message == "ticket 0 is none: choose another number");
    CHECK(waiting.take(2, 7, cancelled).error().code == ErrorCode::NotFound);
    CHECK(waiting.take(1, 8, cancelled).error().message == "no descriptor with ticket 8 came");
    CHECK(waiting.take(1, 7, cancelled));
    CHECK(!waiting.take(1, 7, cancelled));
}

TEST_CASE("a descriptor that is under way is waited for; not where its engine goes") {
    Descriptors waiting({.waited_for = std::chrono::seconds(20)});
    std::atomic<bool> cancelled = false;
    std::thread sender([&] { CHECK(waiting.put(1, 7, a_file())); });
    CHECK(waiting.take(1, 7, cancelled));
    sender.join();
    std::thread leaving([&] {
        cancelled = true;
        waiting.forget(1);
    });
    CHECK(waiting.take(1, 8, cancelled).error().code == ErrorCode::Cancelled);
    leaving.join();
}

TEST_CASE("descriptors that wait are bounded, and closed when their time or their engine is over") {
    Descriptors waiting({.most = 3, .most_per_instance = 2});
    REQUIRE(waiting.put(1, 1, a_file()));
    REQUIRE(waiting.put(1, 2, a_file()));
    CHECK(waiting.put(1, 3, a_file()).error().code == ErrorCode::LimitExceeded);
    REQUIRE(waiting.put(2, 1, a_file()));
    CHECK(waiting.put(3, 1, a_file()).error().message ==
          "0 descriptors of this engine wait, 3 in all, which is the limit");
    waiting.forget(1);
    CHECK(waiting.count() == 1);
    waiting.expire();
    CHECK(waiting.count() == 1);
    waiting.expire(Descriptors::Clock::now() + std::chrono::seconds(11));
    CHECK(waiting.count() == 0);
}

}  // namespace
}  // namespace dkv
