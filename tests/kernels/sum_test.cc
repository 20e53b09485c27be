#include "kernels/ops/sum.h"

#include <array>
#include <cmath>
#include <random>

#include "tests/support/backends.h"

using namespace dkv;

TEST_CASE("sum adds up each head from the first token that is not skipped") {
    test::for_each_backend([](Backend& backend) {
        std::array const scores{1.F,  2.F,  3.F,    // head 0
                                10.F, 20.F, 30.F};  // head 1
        std::array<double, 2> sums{};

        REQUIRE(backend.sum({scores, sums, 2, 3}));
        CHECK(sums == std::array{6.0, 60.0});
        REQUIRE(backend.sum({scores, sums, 2, 3, 2}));
        CHECK(sums == std::array{3.0, 30.0});
        REQUIRE(backend.sum({scores, sums, 2, 3, 7}));
        CHECK(sums == std::array{0.0, 0.0});
        REQUIRE(backend.sum({{}, sums, 2, 0}));
        CHECK(sums == std::array{0.0, 0.0});
    });
}

TEST_CASE("sum of scores that begin anywhere, in heads of any length") {
    test::for_each_backend([](Backend& backend) {
        for (std::size_t skew = 0; skew < 4; ++skew) {
            for (std::uint32_t const tokens : {1U, 3U, 4U, 1028U, 8192U, 8195U, 16388U}) {
                std::vector<float> scores(skew + std::size_t{2} * tokens);
                for (std::size_t i = 0; i < scores.size(); ++i)
                    scores[i] = static_cast<float>(i % 5);
                std::array<double, 2> want{};
                for (std::size_t i = 0; i < std::size_t{2} * tokens; ++i)
                    want[i / tokens] += static_cast<double>(scores[skew + i]);
                std::array<double, 2> sums{};

                REQUIRE(backend.sum({std::span(scores).subspan(skew), sums, 2, tokens}));

                CHECK(sums == want);
            }
        }
    });
}

TEST_CASE("sum takes NaN for 0, and loses nothing to rounding in f32") {
    test::for_each_backend([](Backend& backend) {
        std::vector<float> scores(1 << 20U, 0x1p-24F);
        scores[0] = 1;
        scores[7] = std::nanf("");
        double sum = 0;

        REQUIRE(backend.sum({scores, std::span(&sum, 1), 1, 1 << 20U}));

        CHECK(sum == 1 + ((1 << 20U) - 2) * 0x1p-24);  // In f32 every addition would be lost.
    });
}

TEST_CASE("sum gives the same bits whatever the number of threads") {
    std::mt19937 random(5);
    std::vector<float> scores(8 * 1000);
    for (float& score : scores)
        score = static_cast<float>(random()) * 0x1p-32F;
    std::array<double, 8> one{};
    std::array<double, 8> many{};

    REQUIRE(make_cpu_backend(1)->sum({scores, one, 8, 1000, 3}));
    REQUIRE(make_cpu_backend(8)->sum({scores, many, 8, 1000, 3}));

    CHECK(one == many);
}

TEST_CASE("sum refuses spans that disagree") {
    std::array<float, 6> const scores{};
    std::array<double, 2> sums{};
    CHECK(check(SumArgs{scores, sums, 2, 4}).error().message ==
          "scores has 6 elements, not [2, 4]");
    CHECK(check(SumArgs{scores, sums, 3, 2}).error().message == "sums has 2 elements, not [3]");
}
