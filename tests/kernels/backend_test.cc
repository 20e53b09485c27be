#include "kernels/backend.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <vector>

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

namespace {

constexpr std::size_t kFar = std::size_t{1} << 46U;  // More than any device has.

/// An array in a device's memory.
template <class T>
struct OnDevice {
    OnDevice(Backend& backend, std::vector<T> const& host) {
        auto made = backend.allocate(host.size() * sizeof(T));
        REQUIRE(made);
        buffer = std::move(made).value();
        REQUIRE(backend.upload(std::as_bytes(std::span(host)), buffer->bytes()));
    }
    std::span<T> span() const {
        auto const bytes = buffer->bytes();
        return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
    }
    std::vector<T> fetch(Backend& backend) const {
        std::vector<T> host(span().size());
        REQUIRE(backend.download(buffer->bytes(), std::as_writable_bytes(std::span(host))));
        return host;
    }
    std::unique_ptr<BackendBuffer> buffer;
};

/// A gather of one head's tokens of one f32 each.
struct Staged {
    Staged(Backend& backend, std::vector<std::int32_t> const& which)
        : source(backend, {10, 11, 12, 13}),
          ids(backend, which),
          out(backend, std::vector<float>(which.size(), -1)),
          length(static_cast<std::uint32_t>(which.size())) {}
    Result<void> gather(Backend& backend) {
        RowsView view =
            dense_rows(reinterpret_cast<std::byte*>(source.span().data()), Dtype::F32, 1, 4, 1);
        view.place = Place::Device;
        return backend.gather(
            {view, ids.span(), {&length, 1}, std::as_writable_bytes(out.span()), {&offset, 1}});
    }
    OnDevice<float> source;
    OnDevice<std::int32_t> ids;
    OnDevice<float> out;
    std::uint32_t length;
    std::uint64_t offset = 0;
};

}  // namespace

TEST_CASE("a device refuses memory that it has not, and works on") {
    auto const device = test::device();
    if (!device) return;
    CHECK(device->name().starts_with("cuda ("));
    CHECK(device->name().find(", sm_") != std::string_view::npos);

    for (std::size_t const bytes : {kFar, std::numeric_limits<std::size_t>::max()}) {
        auto const refused = device->allocate(bytes);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == ErrorCode::LimitExceeded);
        CHECK(refused.error().message ==
              "not enough device memory for " + std::to_string(bytes) + " bytes");
    }
    Staged rows(*device, {2, 0});
    REQUIRE(rows.gather(*device));
    CHECK(rows.out.fetch(*device) == std::vector<float>{12, 10});
}

TEST_CASE("a pool is there from the start, or there is no backend") {
    if (!test::device()) return;
    auto const some = make_cuda_backend({.device = "", .pool_bytes = std::uint64_t{8} << 20U});
    REQUIRE(some);
    CHECK(some.value()->allocate(std::size_t{1} << 20U));

    auto const much = make_cuda_backend({.device = "", .pool_bytes = kFar});
    REQUIRE_FALSE(much);
    CHECK(much.error().code == ErrorCode::LimitExceeded);
    CHECK(much.error().message ==
          "not enough device memory for " + std::to_string(kFar) + " bytes");
}

TEST_CASE("what an op finds wrong on the device is told when it is waited for, once") {
    auto const device = test::device();
    if (!device) return;
    Staged good(*device, {1, 3});
    Staged bad(*device, {0, 4});
    Staged after(*device, {2});

    REQUIRE(good.gather(*device));
    REQUIRE(bad.gather(*device));  // Nobody has looked yet.
    REQUIRE(after.gather(*device));
    auto const late = device->synchronize();
    REQUIRE_FALSE(late);
    CHECK(late.error().code == ErrorCode::InvalidArgument);
    CHECK(late.error().message == "id 4 of head 0 is not in [0, 4)");

    CHECK(device->synchronize());
    CHECK(good.out.fetch(*device) == std::vector<float>{11, 13});
    CHECK(bad.out.fetch(*device) == std::vector<float>{-1, -1});
    CHECK(after.out.fetch(*device) == std::vector<float>{-1});  // Nor what came behind it.
    REQUIRE(after.gather(*device));
    CHECK(after.out.fetch(*device) == std::vector<float>{12});
}

TEST_CASE("uploads are read before they return, whatever their size") {
    auto const device = test::device();
    if (!device) return;
    for (std::size_t const count : {1U, 5000U, 3U << 20U}) {  // The last one is not staged.
        std::vector<std::uint32_t> host(count, 7);
        OnDevice<std::uint32_t> const copy(*device, host);
        std::fill(host.begin(), host.end(), 9U);
        CHECK(copy.fetch(*device) == std::vector<std::uint32_t>(count, 7));
    }
}

TEST_CASE("a thousand ops may be under way before anybody waits") {
    auto const device = test::device();
    if (!device) return;
    constexpr std::uint32_t kTokens = 300;
    std::vector<float> host(kTokens);
    for (std::uint32_t i = 0; i < kTokens; ++i)
        host[i] = static_cast<float>(i * 37 % kTokens);
    OnDevice<float> const scores(*device, host);
    std::vector<double> sums(1000);
    std::vector<std::uint32_t> sizes;
    std::vector<std::unique_ptr<OnDevice<std::int32_t>>> picks;
    for (std::uint32_t i = 0; i < 1000; ++i) {
        REQUIRE(device->sum({scores.span(), {&sums[i], 1}, 1, kTokens, i % kTokens}));
        if (i % 20 != 0) continue;
        std::uint32_t const keep = 1 + i % kTokens;
        picks.push_back(
            std::make_unique<OnDevice<std::int32_t>>(*device, std::vector<std::int32_t>(keep, -1)));
        REQUIRE(device->select({scores.span(), {&keep, 1}, picks.back()->span(), kTokens}));
    }
    REQUIRE(device->synchronize());

    for (std::uint32_t i = 0; i < 1000; ++i) {
        double want = 0;
        for (std::uint32_t token = i % kTokens; token < kTokens; ++token)
            want += host[token];
        CHECK(sums[i] == want);
    }
    for (auto const& pick : picks) {
        auto const ids = pick->fetch(*device);
        bool ranked = true;
        for (std::size_t rank = 0; rank < ids.size(); ++rank)
            ranked = ranked && host[static_cast<std::size_t>(ids[rank])] ==
                                   static_cast<float>(kTokens - 1 - rank);
        CHECK(ranked);
    }
}

TEST_CASE("memory that goes while it is used is there until it has been") {
    auto const device = test::device();
    if (!device) return;
    auto rows = std::make_unique<Staged>(*device, std::vector<std::int32_t>{3, 2, 1, 0});
    OnDevice<float> const kept(*device, std::vector<float>(4));
    RowsView view =
        dense_rows(reinterpret_cast<std::byte*>(rows->out.span().data()), Dtype::F32, 1, 4, 1);
    view.place = Place::Device;
    REQUIRE(rows->gather(*device));
    REQUIRE(device->gather({view,
                            rows->ids.span(),
                            {&rows->length, 1},
                            std::as_writable_bytes(kept.span()),
                            {&rows->offset, 1}}));
    rows.reset();
    for (int i = 0; i < 20; ++i) {  // Takes the place of what went, and is written.
        OnDevice<float> const other(*device, {-5, -5, -5, -5});
    }
    CHECK(kept.fetch(*device) == std::vector<float>{10, 11, 12, 13});
}

TEST_CASE("a buffer may outlive its backend") {
    auto device = test::device();
    if (!device) return;
    auto buffer = device->allocate(1000);
    REQUIRE(buffer);
    device.reset();
    CHECK(buffer.value()->bytes().size() == 1000);
    buffer.value().reset();
}

TEST_CASE("a device does not take rows in the host's memory for its own") {
    auto const device = test::device();
    if (!device) return;
    std::array<float, 4> host{};
    RowsView const view =
        dense_rows(reinterpret_cast<std::byte*>(host.data()), Dtype::F32, 1, 4, 1);
    std::array<float, 4> scores{};
    auto const scored = device->key_score({view, scores, 0, KeyMeasure::Norm});
    REQUIRE_FALSE(scored);
    CHECK(scored.error().message == "keys are in host memory");
    std::array<std::int32_t, 1> const ids{};
    std::uint32_t const length = 1;
    std::uint64_t const offset = 0;
    std::array<std::byte, 4> out{};
    auto const gathered = device->gather({view, ids, {&length, 1}, out, {&offset, 1}});
    REQUIRE_FALSE(gathered);
    CHECK(gathered.error().message == "source is in host memory");
}
