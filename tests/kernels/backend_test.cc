#include "kernels/backend.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "tests/support/backends.h"

using namespace dkv;

TEST_CASE("a backend says what it runs on") {
    std::string const name(make_cpu_backend(1)->name());
    CHECK(name.starts_with("cpu ("));
    CHECK(name.ends_with(", 1 thread)"));
}

TEST_CASE("a buffer is zeroed, aligned to 64 bytes and carries bytes both ways") {
    test::for_each_backend([](Backend& backend) {
        auto const buffer = backend.allocate(100);
        REQUIRE(buffer);
        auto const bytes = buffer.value()->bytes();
        REQUIRE(bytes.size() == 100);
        CHECK(reinterpret_cast<std::uintptr_t>(bytes.data()) % 64 == 0);
        std::array<std::byte, 100> host{};
        host.fill(std::byte{1});
        REQUIRE(backend.download(bytes, host));
        CHECK(std::all_of(host.begin(), host.end(), [](std::byte b) { return b == std::byte{0}; }));

        host.fill(std::byte{7});
        std::array<std::byte, 100> back{};
        REQUIRE(backend.upload(host, bytes));
        REQUIRE(backend.download(bytes, back));
        REQUIRE(backend.synchronize());
        CHECK(back == host);
    });
}

TEST_CASE("a buffer of no bytes is a buffer") {
    test::for_each_backend([](Backend& backend) {
        auto const buffer = backend.allocate(0);
        REQUIRE(buffer);
        CHECK(buffer.value()->bytes().empty());
    });
}

TEST_CASE("more memory than there is, is a limit") {
    test::for_each_backend([](Backend& backend) {
        auto const buffer = backend.allocate(std::numeric_limits<std::size_t>::max());
        REQUIRE_FALSE(buffer);
        CHECK(buffer.error().code == ErrorCode::LimitExceeded);
        CHECK(buffer.error().message == "not enough memory for 18446744073709551615 bytes");
    });
}

TEST_CASE("bytes are carried between spans of one size only") {
    test::for_each_backend([](Backend& backend) {
        std::array<std::byte, 3> three{};
        std::array<std::byte, 4> four{};
        auto const result = backend.upload(four, three);
        REQUIRE_FALSE(result);
        CHECK(result.error().message == "target has 3 bytes, source 4");
    });
}
