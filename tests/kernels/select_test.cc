#include "kernels/ops/select.h"

#include <array>
#include <cmath>
#include <limits>
#include <random>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

using namespace dkv;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<std::int32_t> select_one(Backend& backend,
                                     std::vector<float> const& scores,
                                     std::uint32_t keep) {
    std::vector<std::int32_t> ids(keep, -1);
    REQUIRE(backend.select({scores, {&keep, 1}, ids, static_cast<std::uint32_t>(scores.size())}));
    return ids;
}

}  // namespace

TEST_CASE("select picks the largest scores of each head, best first") {
    test::for_each_backend([](Backend& backend) {
        std::array const scores{0.1f, 0.9f, 0.5f, 0.7f,   // head 0
                                0.4f, 0.3f, 0.2f, 0.1f,   // head 1
                                -4.f, -3.f, -2.f, -1.f};  // head 2
        std::array<std::uint32_t, 3> const keep{2, 0, 3};
        std::array<std::int32_t, 5> ids{};

        REQUIRE(backend.select({scores, keep, ids, 4}));

        CHECK(ids == std::array{1, 3, 3, 2, 1});
    });
}

TEST_CASE("select breaks ties towards the earlier token") {
    test::for_each_backend([](Backend& backend) {
        CHECK(select_one(backend, {0.5f, 0.5f, 0.5f}, 2) == std::vector{0, 1});
        CHECK(select_one(backend, {0.f, 2.f, 2.f, 1.f, 2.f}, 4) == std::vector{1, 2, 4, 3});
        CHECK(select_one(backend, {0.f, -0.f, 0.f, -0.f}, 3) == std::vector{0, 1, 2});
    });
}

TEST_CASE("select breaks ties so among thousands of them, wherever a head begins") {
    test::for_each_backend([](Backend& backend) {
        // A third of 9001 scores is 2, the others are 1; heads begin at odd addresses.
        std::vector<float> scores(std::size_t{2} * 9001);
        for (std::size_t i = 0; i < scores.size(); ++i)
            scores[i] = i % 9001 % 3 == 0 ? 2.f : 1.f;
        std::array<std::uint32_t, 2> const keep{8000, 8500};
        std::vector<std::int32_t> want;
        for (std::uint32_t const count : keep) {
            auto const end = static_cast<std::ptrdiff_t>(want.size() + count);
            for (std::int32_t id = 0; id < 9001; id += 3)
                want.push_back(id);
            for (std::int32_t id = 0; id < 9001; ++id)
                if (id % 3 != 0) want.push_back(id);
            want.resize(static_cast<std::size_t>(end));
        }
        std::vector<std::int32_t> ids(want.size());

        REQUIRE(backend.select({scores, keep, ids, 9001}));

        CHECK(ids == want);
    });
}

TEST_CASE("a prefix of a selection is a selection, also across the plateaus of max pooling") {
    test::for_each_backend([](Backend& backend) {
        std::vector<float> scores(500);
        for (std::size_t i = 0; i < scores.size(); ++i)
            scores[i] = static_cast<float>(i / 7 * 37 % 23);
        auto const all = select_one(backend, scores, 500);
        for (std::uint32_t keep = 0; keep <= 500; keep += 23) {
            CAPTURE(keep);
            CHECK(select_one(backend, scores, keep) ==
                  std::vector(all.begin(), all.begin() + keep));
        }
    });
}

TEST_CASE("NaN counts as the smallest score, below minus infinity") {
    test::for_each_backend([](Backend& backend) {
        float const nan = std::nanf("");
        CHECK(select_one(backend, {nan, -kInfinity, -nan, 1.f, kInfinity}, 5) ==
              std::vector{4, 3, 1, 0, 2});
        CHECK(select_one(backend, {nan, nan, nan}, 2) == std::vector{0, 1});
        CHECK(select_one(backend, {-kInfinity, -kInfinity}, 1) == std::vector{0});
    });
}

TEST_CASE("select is a stable sort by score, whatever the scores") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    test::for_each_backend([&](Backend& backend) {
        for (std::uint32_t const tokens : {1u, 2u, 63u, 1000u, 5000u}) {
            for (int kind = 0; kind < 4; ++kind) {
                CAPTURE(tokens);
                CAPTURE(kind);
                std::vector<float> scores(std::size_t{3} * tokens);
                for (float& score : scores) {
                    auto const bits = static_cast<std::uint32_t>(random());
                    if (kind == 0) score = std::bit_cast<float>(bits);  // Any bits: NaN, -0, …
                    if (kind == 1) score = static_cast<float>(bits % 5);
                    if (kind == 2) score = 1.f + static_cast<float>(bits % 999) * 0x1p-23f;
                    if (kind == 3) score = static_cast<float>(std::pow(bits * 0x1p-32, 9));
                }
                auto const upto = tokens + 1;
                std::array<std::uint32_t, 3> const keep{
                    static_cast<std::uint32_t>(random() % upto), tokens,
                    static_cast<std::uint32_t>(random() % upto)};
                std::vector<std::int32_t> ids(std::size_t{keep[0]} + keep[1] + keep[2]);

                REQUIRE(backend.select({scores, keep, ids, tokens}));

                CHECK(ids == test::reference_select(scores, keep, tokens));
            }
        }
    });
}

TEST_CASE("select refuses to keep more tokens than there are, and spans that disagree") {
    std::array<float, 6> const scores{};
    std::array<std::int32_t, 3> ids{};
    std::array<std::uint32_t, 2> keep{1, 4};
    auto const refusal = [&](std::uint32_t tokens) {
        auto const result = check(SelectArgs{scores, keep, ids, tokens});
        REQUIRE_FALSE(result);
        CHECK(result.error().code == ErrorCode::InvalidArgument);
        return result.error().message;
    };
    CHECK(refusal(3) == "keep[1] is 4, more than the 3 tokens");
    CHECK(refusal(2) == "scores has 6 elements, not [2, 2]");
    CHECK(refusal(0x80000000u) == "tokens is 2147483648, more than 2147483647");
    keep = {1, 1};
    CHECK(refusal(3) == "ids has 3 elements, not [2]");
}
