#include <atomic>
#include <vector>

#include <doctest/doctest.h>

#include "kernels/backend.h"
#include "kernels/cpu/workers.h"

using namespace dkv;

TEST_CASE("workers leave out the items that come after the flag is set") {
    std::atomic<bool> cancelled = false;
    cpu::Workers workers(1);
    workers.cancel_by(&cancelled);
    std::size_t seen = 0;
    workers.for_each(100, [&](std::size_t item, std::size_t) {
        ++seen;
        if (item == 3) cancelled = true;
    });
    CHECK(seen == 4);
    CHECK(workers.cancelled());
}

TEST_CASE("an op that was cancelled is an error, until nothing cancels it") {
    auto const backend = make_cpu_backend(2);
    std::vector<float> const values(64, 1.0F);
    std::vector<double> sums(4);
    SumArgs const args{.scores = values, .sums = sums, .heads = 4, .tokens = 16};
    std::atomic<bool> cancelled = true;
    backend->cancel_by(&cancelled);

    auto const refused = backend->sum(args);

    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ErrorCode::Cancelled);
    backend->cancel_by(nullptr);
    CHECK(backend->sum(args));
    CHECK(sums == std::vector<double>(4, 16.0));
}
