#include "kernels/cuda/queue.h"

#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include "kernels/cuda/backend_first_cause.h"
#include "tests/kernels/queue/made.h"

using namespace dkv;
using cuda::Queue;

namespace {

using test::make_queue;
using test::value_of;

std::vector<std::uint32_t> numbers(std::size_t count, std::uint32_t first) {
    std::vector<std::uint32_t> all(count);
    std::iota(all.begin(), all.end(), first);
    return all;
}

}  // namespace

TEST_CASE("a queue's stream gives way to every other stream, and to no default stream's order") {
    auto const queue = make_queue();
    int lowest = 0;
    int highest = 0;
    REQUIRE(cudaDeviceGetStreamPriorityRange(&lowest, &highest) == cudaSuccess);
    int priority = highest;
    REQUIRE(cudaStreamGetPriority(queue->stream(), &priority) == cudaSuccess);
    CHECK(priority == lowest);
    unsigned flags = 0;
    REQUIRE(cudaStreamGetFlags(queue->stream(), &flags) == cudaSuccess);
    CHECK(flags == cudaStreamNonBlocking);
}

TEST_CASE("scratch that an op was handed stays its own while scratch grows under it") {
    auto const queue = make_queue();
    queue->begin();
    auto const small = numbers(100, 1);
    auto const* const first = value_of(queue->upload(std::span<std::uint32_t const>(small)));
    CHECK(reinterpret_cast<std::uintptr_t>(first) % 256 == 0);
    auto const large = numbers(1U << 20U, 7);  // More than a queue begins with.
    auto const* const second = value_of(queue->upload(std::span<std::uint32_t const>(large)));
    auto const* const third = value_of(queue->upload(std::span<std::uint32_t const>(small)));
    CHECK(reinterpret_cast<std::uintptr_t>(third) % 256 == 0);
    std::vector<std::uint32_t> a(small.size());
    std::vector<std::uint32_t> b(large.size());
    std::vector<std::uint32_t> c(small.size());
    REQUIRE(queue->download_later(first, std::span(a)));
    REQUIRE(queue->download_later(second, std::span(b)));
    REQUIRE(queue->download_later(third, std::span(c)));
    CHECK(a != small);  // Later means later.
    REQUIRE(queue->synchronize());
    CHECK(a == small);
    CHECK(b == large);
    CHECK(c == small);

    // Ops like it soon find room for all of that, one after another.
    for (int op = 0; op < 2; ++op) {
        queue->begin();
        for (std::size_t const count : {small.size(), large.size(), small.size()})
            REQUIRE(queue->scratch<std::uint32_t>(count));
    }
    queue->begin();
    auto* const begin = value_of(queue->scratch<std::uint32_t>(small.size()));
    CHECK(value_of(queue->scratch<std::uint32_t>(large.size())) == begin + 512 / 4);
    CHECK(value_of(queue->scratch<std::uint32_t>(small.size())) == begin + 512 / 4 + large.size());
    queue->begin();
    CHECK(value_of(queue->scratch<std::uint32_t>(1)) == begin);
}

TEST_CASE("what is staged is not overwritten before it has been copied, however much follows") {
    auto const queue = make_queue();
    constexpr std::size_t kCount = 5000;  // 20 kB: three fit in a chunk.
    constexpr std::uint32_t kOps = 60;
    std::byte* const memory = value_of(queue->allocate(kOps * kCount * 4));
    for (std::uint32_t op = 0; op < kOps; ++op) {
        auto const host = numbers(kCount, 1000 * op);
        REQUIRE(queue->upload(std::as_bytes(std::span(host)), memory + op * kCount * 4));
    }
    std::vector<std::vector<std::uint32_t>> back(kOps, std::vector<std::uint32_t>(kCount));
    for (std::uint32_t op = 0; op < kOps; ++op)
        REQUIRE(queue->download_later(
            reinterpret_cast<std::uint32_t const*>(memory + op * kCount * 4), std::span(back[op])));
    REQUIRE(queue->synchronize());
    for (std::uint32_t op = 0; op < kOps; ++op)
        CHECK(back[op] == numbers(kCount, 1000 * op));
    queue->release(memory);
}

TEST_CASE("after a failure nothing is written to memory that was promised to be filled") {
    auto const queue = make_queue();
    queue->begin();
    auto const host = numbers(10, 1);
    auto const* const device = value_of(queue->upload(std::span<std::uint32_t const>(host)));
    std::vector<std::uint32_t> target(10, 7);
    REQUIRE(queue->download_later(device, std::span(target)));
    CHECK_FALSE(queue->lost());
    REQUIRE(cudaStreamDestroy(queue->stream()) == cudaSuccess);  // As good as a lost device.

    auto const failed = queue->synchronize();
    REQUIRE_FALSE(failed);
    CHECK(failed.error().code == ErrorCode::Device);
    CHECK(failed.error().message.find("cudaErrorInvalidResourceHandle") != std::string::npos);
    CHECK(failed.error().message.find('\n') == std::string::npos);
    CHECK(queue->lost());
    REQUIRE_FALSE(queue->synchronize());
    CHECK(target == std::vector<std::uint32_t>(10, 7));
}

TEST_CASE("the first cause of a lost device is every later call's error") {
    auto const queue = make_queue();
    cuda::FirstCause first;
    auto const lost = [&] { return queue->lost(); };
    auto const invalid = Error{ErrorCode::InvalidArgument, "id 7"};
    auto const device = Error{ErrorCode::Device, "cudaLaunchKernelEx: too many threads"};
    CHECK(first.run([&]() -> Result<void> { return invalid; }, lost).error().message == "id 7");
    // An error of the device's that it has got over is no cause of anything.
    CHECK_FALSE(first.run([&]() -> Result<void> { return device; }, lost));
    CHECK(first.run([]() -> Result<void> { return {}; }, lost));

    REQUIRE(cudaStreamDestroy(queue->stream()) == cudaSuccess);
    auto const cause = first.run([&] { return queue->synchronize(); }, lost);
    REQUIRE_FALSE(cause);
    bool called = false;
    auto const later = first.run(
        [&]() -> Result<void> {
            called = true;
            return {};
        },
        lost);
    REQUIRE_FALSE(later);
    CHECK(later.error().message == cause.error().message);
    CHECK_FALSE(called);
}
