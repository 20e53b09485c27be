// The expected values are torch's, of version 2.13 on CPU.
#include "cli/saved/reference/torch_ops.h"

#include <array>
#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;
using namespace dkv::reference;

using Positions = std::vector<std::int32_t>;
using Scores = std::vector<float>;

TEST_CASE("top_positions orders equal scores as torch does when it selects") {
    std::array const scores{1.0f, 3.0f, 3.0f, 3.0f, 3.0f, 2.0f, 3.0f, 3.0f};

    CHECK(top_positions(scores, 4) == Positions{4, 7, 6, 3});
}

TEST_CASE("top_positions orders equal scores as torch does when it sorts partially") {
    std::vector<float> scores(256);
    for (std::size_t i = 0; i < scores.size(); ++i)
        scores[i] = static_cast<float>(i % 3);

    CHECK(top_positions(scores, 4) == Positions{8, 5, 11, 2});            // 4 * 64 <= 256
    CHECK(top_positions(scores, 5) == Positions{179, 80, 176, 77, 173});  // 5 * 64 > 256
}

TEST_CASE("top_positions puts NaN above infinity") {
    std::array const scores{1.0f, std::nanf(""), std::numeric_limits<float>::infinity(), 2.0f};

    CHECK(top_positions(scores, 3) == Positions{1, 2, 3});
    CHECK(top_positions(scores, 0).empty());
}

TEST_CASE("pool1d divides by the kernel also where the window reaches outside") {
    auto const pooled = pool1d(std::array{3.0f, 6.0f, 9.0f, 12.0f}, 1, Pool::Avg, 3);

    REQUIRE(pooled);
    CHECK(pooled.value() == Scores{3, 6, 9, 7});
}

TEST_CASE("pool1d adds from left to right in f32") {
    float const small = 0x1p-24f;

    auto const large_first = pool1d(std::array{1.0f, small, small}, 1, Pool::Avg, 3);
    auto const large_last = pool1d(std::array{small, small, 1.0f}, 1, Pool::Avg, 3);

    REQUIRE(large_first);
    REQUIRE(large_last);
    CHECK(large_first.value()[1] == 0x1.555556p-2f);
    CHECK(large_last.value()[1] == 0x1.555558p-2f);
}

TEST_CASE("pool1d of an even kernel has a column too many") {
    auto const pooled = pool1d(std::array{3.0f, 6.0f, 9.0f}, 1, Pool::Avg, 2);

    REQUIRE(pooled);
    CHECK(pooled.value() == Scores{1.5f, 4.5f, 7.5f, 4.5f});
}

TEST_CASE("pool1d takes the maximum of each row, with nothing outside") {
    auto const pooled =
        pool1d(std::array{-3.0f, -6.0f, -9.0f, 1.0f, std::nanf(""), 0.0f}, 2, Pool::Max, 3);

    REQUIRE(pooled);
    CHECK(Scores(pooled.value().begin(), pooled.value().begin() + 3) == Scores{-3, -3, -6});
    CHECK(std::isnan(pooled.value()[3]));
    CHECK(std::isnan(pooled.value()[5]));
}

TEST_CASE("pool1d refuses what is no pooling") {
    std::array const scores{1.0f, 2.0f, 3.0f};

    CHECK(pool1d(scores, 1, Pool::Avg, 0).error().message == "kernel is 0");
    CHECK(pool1d(scores, 2, Pool::Avg, 3).error().message ==
          "3 scores are not 2 rows of equal length");
}

TEST_CASE("group_mean averages consecutive rows") {
    auto const means = group_mean(std::array{1.0f, 2.0f, 3.0f, 6.0f, 0.0f, 1.0f, 8.0f, 8.0f}, 2, 2);

    REQUIRE(means);
    CHECK(means.value() == Scores{2, 4, 4, 4.5f});
    CHECK(group_mean(std::array{1.0f, 2.0f, 3.0f}, 2, 1).error().message ==
          "3 scores are not 2 groups of 1 rows of equal length");
}

TEST_CASE("float_floor_divide is Python's //, not the floor of a quotient") {
    CHECK(float_floor_divide(7, 2) == 3);
    CHECK(float_floor_divide(0, 0.5) == 0);
    CHECK(float_floor_divide(1.0, 0.1) == 9);  // 1 / 0.1 is 10.
    CHECK(float_floor_divide(6.0, 0.1) == 59);
    CHECK(float_floor_divide(3.0, 0.3) == 10);
}
