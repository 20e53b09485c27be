#include "kernels/ops/pool.h"

#include <array>
#include <cmath>
#include <limits>
#include <random>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

using namespace dkv;

TEST_CASE("max pooling spreads a peak, and sees nothing outside the row") {
    test::for_each_backend([](Backend& backend) {
        std::array const scores{-1.f, -5.f, -7.f, -6.f, -9.f, 3.f, 0.f, 0.f, 0.f, 1.f};
        std::array<float, 10> out{};
        REQUIRE(backend.pool({scores, out, 2, 5, 3, Pool::Max}));
        CHECK(out == std::array{-1.f, -1.f, -5.f, -6.f, -6.f, 3.f, 3.f, 0.f, 1.f, 1.f});
    });
}

TEST_CASE("average pooling divides by the kernel, also at the ends of the row") {
    test::for_each_backend([](Backend& backend) {
        std::array const scores{3.f, 6.f, 9.f, 0.f};
        std::array<float, 4> out{};
        REQUIRE(backend.pool({scores, out, 1, 4, 3, Pool::Avg}));
        CHECK(out == std::array{3.f, 6.f, 5.f, 3.f});
    });
}

TEST_CASE("a kernel of 1 changes nothing") {
    test::for_each_backend([](Backend& backend) {
        std::array const scores{3.f, -6.f, 9.f};
        for (Pool const pool : {Pool::Max, Pool::Avg}) {
            std::array<float, 3> out{};
            REQUIRE(backend.pool({scores, out, 1, 3, 1, pool}));
            CHECK(out == scores);
        }
    });
}

TEST_CASE("a NaN reaches the outputs that see it and no other") {
    test::for_each_backend([](Backend& backend) {
        for (Pool const pool : {Pool::Max, Pool::Avg}) {
            for (std::uint32_t const kernel : {3u, 5u, 41u, 101u}) {
                std::vector<float> scores(200, 1.f);
                scores[100] = std::nanf("");
                std::vector<float> out(200);
                REQUIRE(backend.pool({scores, out, 1, 200, kernel, pool}));
                bool exact = true;
                for (std::uint32_t t = 0; t < 200; ++t) {
                    bool const sees = t + kernel / 2 >= 100 && t <= 100 + kernel / 2;
                    exact = exact && std::isnan(out[t]) == sees;
                }
                CHECK(exact);
            }
        }
    });
}

TEST_CASE("pool is the reference at every kernel and length") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    test::for_each_backend([&](Backend& backend) {
        for (std::uint32_t const kernel : {1u, 3u, 5u, 7u, 31u, 33u, 99u, 257u, 0xffffffffu}) {
            for (std::uint32_t const tokens : {1u, 2u, 6u, 33u, 130u, 5000u}) {
                CAPTURE(kernel);
                CAPTURE(tokens);
                std::vector<float> scores(std::size_t{2} * tokens);
                for (float& score : scores)
                    score = normal(random);
                std::vector<float> out(scores.size());
                PoolArgs args{scores, out, 2, tokens, kernel, Pool::Max};

                REQUIRE(backend.pool(args));
                auto const most = test::reference_pool(args);
                CHECK(std::equal(out.begin(), out.end(), most.begin()));

                for (float& score : scores)
                    score = std::abs(score);  // Sums without cancellation: relative errors.
                args.pool = Pool::Avg;
                REQUIRE(backend.pool(args));
                CHECK(test::worst_error(out, test::reference_pool(args), 1e-5) <= 1);
            }
        }
    });
}

TEST_CASE("pool of no tokens or no heads is nothing") {
    test::for_each_backend([](Backend& backend) {
        REQUIRE(backend.pool({{}, {}, 3, 0, 7, Pool::Max}));
        REQUIRE(backend.pool({{}, {}, 0, 9, 7, Pool::Avg}));
    });
}

TEST_CASE("pool refuses an even kernel, spans that disagree, and to work in place") {
    std::array<float, 6> scores{};
    std::array<float, 6> out{};
    auto const refusal = [](PoolArgs const& args) { return check(args).error().message; };
    CHECK(refusal({scores, out, 2, 3, 4, Pool::Max}) == "kernel is 4, not odd");
    CHECK(refusal({scores, out, 2, 3, 0, Pool::Max}) == "kernel is 0, not odd");
    CHECK(refusal({scores, out, 2, 4, 3, Pool::Max}) == "scores has 6 elements, not [2, 4]");
    CHECK(refusal({scores, {out.data(), 5}, 2, 3, 3, Pool::Max}) ==
          "out has 5 elements, not [2, 3]");
    CHECK(refusal({scores, scores, 2, 3, 3, Pool::Max}) == "out overlaps scores");
    CHECK(check(PoolArgs{scores, out, 2, 3, 4, Pool::Max}).error().code ==
          ErrorCode::InvalidArgument);
}
