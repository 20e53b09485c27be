#include "kernels/ops/key_score.h"

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

using namespace dkv;
using test::Layout;
using test::Rows;

namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();

/// One call's memory.
struct KeyCall {
    KeyCall(std::uint32_t heads,
            std::uint32_t tokens,
            std::uint32_t window,
            std::uint32_t head_dim,
            KeyMeasure measure,
            Dtype dtype = Dtype::F32,
            Layout layout = Layout::HeadMajor)
        : keys(dtype, heads, tokens, head_dim, layout),
          scores(std::size_t{heads} * (tokens - window)) {
        args.keys = keys.view;
        args.scores = scores;
        args.window = window;
        args.measure = measure;
    }
    std::string refusal() const {
        auto const result = check(args);
        if (!result) CHECK(result.error().code == ErrorCode::InvalidArgument);
        return result ? "" : result.error().message;
    }

    Rows keys;
    std::vector<float> scores;
    KeyScoreArgs args;
};

}  // namespace

TEST_CASE("the norm ranks small keys first, per head") {
    test::for_each_backend([](Backend& backend) {
        KeyCall call(2, 3, 1, 2, KeyMeasure::Norm);
        call.keys.fill([](auto head, auto token, auto dim) {
            return static_cast<float>((dim == 0 ? 3 : 4) * (head == 0 ? token : 2 - token));
        });
        REQUIRE(backend.key_score(call.args));
        CHECK(call.scores == std::vector{0.f, -5.f, -10.f, -5.f});
    });
}

TEST_CASE("the difference is measured from the mean of directions, the window's among them") {
    test::for_each_backend([](Backend& backend) {
        // Directions (1, 0), (0, 1) and (0, 1): their mean points to (1, 2) / √5.
        KeyCall call(1, 3, 1, 2, KeyMeasure::Difference);
        call.keys.fill([](auto, auto token, auto dim) {
            return token == 0 ? (dim == 0 ? 7.f : 0.f) : (dim == 0 ? 0.f : 0.5f);
        });
        REQUIRE(backend.key_score(call.args));
        CHECK(call.scores[0] == doctest::Approx(-1 / std::sqrt(5.0)));
        CHECK(call.scores[1] == doctest::Approx(-2 / std::sqrt(5.0)));
    });
}

TEST_CASE("the difference is measured of keys in 16-byte words, however many there are") {
    test::for_each_backend([](Backend& backend) {
        for (auto const& [type, dim] : {std::pair{Dtype::F16, 64u}, std::pair{Dtype::F32, 256u}}) {
            Dtype const dtype = type;
            for (std::uint32_t const tokens : {1u, 2u, 9u, 63u, 64u, 65u, 70u, 71u, 600u}) {
                INFO(name_of(dtype), ", ", tokens, " tokens");
                // Two directions in turns.
                KeyCall call(2, tokens, 0, dim, KeyMeasure::Difference, dtype);
                call.keys.fill([](auto head, auto token, auto axis) {
                    return axis == 40 * (token % 2) + head ? 3.f : 0.f;
                });
                std::uint32_t const even = (tokens + 1) / 2;
                std::uint32_t const odd = tokens / 2;
                REQUIRE(backend.key_score(call.args));
                double worst = 0;
                for (std::size_t i = 0; i < call.scores.size(); ++i)
                    worst = std::max(worst,
                                     std::abs(call.scores[i] + (i % tokens % 2 == 0 ? even : odd) /
                                                                   std::hypot(even, odd)));
                CHECK(worst < 1e-6);
            }
        }
    });
}

TEST_CASE("key scores are the reference at every shape, dtype and layout") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto const pick = [&](auto const& list) { return list[random() % list.size()]; };
    test::for_each_backend([&](Backend& backend) {
        for (int round = 0; round < 40; ++round) {
            auto const heads = 1 + static_cast<std::uint32_t>(random() % 3);
            auto const tokens = 1 + static_cast<std::uint32_t>(random() % 2600);
            auto const window = static_cast<std::uint32_t>(random() % tokens);
            auto const dim = pick(std::array{1u, 3u, 16u, 33u, 64u, 80u});
            auto const dtype = pick(std::array{Dtype::F32, Dtype::F16, Dtype::Bf16});
            auto const layout = pick(
                std::array{Layout::HeadMajor, Layout::TokenMajor, Layout::DimMajor, Layout::Odd});
            for (KeyMeasure const measure : {KeyMeasure::Norm, KeyMeasure::Difference}) {
                KeyCall call(heads, tokens, window, dim, measure, dtype, layout);
                std::normal_distribution<float> normal;
                call.keys.fill([&](auto, auto token, auto axis) {
                    return token % 97 == 5 ? 0.f : normal(random) + (axis == 0 ? 2.f : 0.f);
                });
                INFO(round, ": ", heads, " heads, ", tokens, " tokens, window ", window, ", dim ",
                     dim, ", ", name_of(dtype), ", layout ", static_cast<int>(layout));
                auto const want = test::reference_key_score(call.keys, call.args);
                REQUIRE(backend.key_score(call.args));
                // A cosine is known to within f32's accuracy of 1, not of itself.
                double worst = 0;
                for (std::size_t i = 0; i < want.size(); ++i)
                    worst = std::max(worst, std::abs(call.scores[i] - want[i]) /
                                                std::max(1.0, std::abs(want[i])));
                CHECK(worst < 2e-6);
            }
        }
    });
}

TEST_CASE("a key that is no number scores lowest and does not move the mean") {
    test::for_each_backend([](Backend& backend) {
        for (float const poison : {std::nanf(""), std::numeric_limits<float>::infinity(), 3e38f}) {
            for (KeyMeasure const measure : {KeyMeasure::Norm, KeyMeasure::Difference}) {
                std::mt19937 random(4);
                KeyCall call(1, 60, 2, 16, measure);
                call.keys.fill_normal(random);
                call.keys.set(0, 3, 7, 0);
                for (std::uint32_t dim = 0; dim < 16; ++dim)
                    call.keys.set(0, 3, dim, 0);
                REQUIRE(backend.key_score(call.args));
                auto want = call.scores;
                want[3] = kLowest;
                call.keys.set(0, 3, 7, poison);
                REQUIRE(backend.key_score(call.args));
                CHECK(call.scores == want);
            }
        }
    });
}

TEST_CASE("keys of zeros are neither alike nor unlike anything") {
    test::for_each_backend([](Backend& backend) {
        KeyCall call(1, 9, 2, 5, KeyMeasure::Difference);
        REQUIRE(backend.key_score(call.args));
        CHECK(call.scores == std::vector<float>(7, 0.f));
    });
}

TEST_CASE("key scores are the same bits on any number of threads") {
    std::mt19937 random(3);
    KeyCall call(3, 5000, 32, 64, KeyMeasure::Difference, Dtype::Bf16);
    call.keys.fill_normal(random);
    std::vector<std::vector<float>> all;
    for (unsigned const threads : {1u, 2u, 0u}) {
        REQUIRE(make_cpu_backend(threads)->key_score(call.args));
        all.push_back(call.scores);
    }
    CHECK(all[1] == all[0]);
    CHECK(all[2] == all[0]);
}

TEST_CASE("key_score refuses what disagrees") {
    auto const refusal = [&](auto change) {
        KeyCall call(2, 10, 4, 8, KeyMeasure::Norm);
        change(call.args);
        return call.refusal();
    };
    CHECK(refusal([](auto&) {}).empty());
    CHECK(refusal([](auto& args) { args.keys.heads = 0; }) == "keys has 0 heads of 8 dimensions");
    CHECK(refusal([](auto& args) { args.keys.head_dim = 0; }) ==
          "keys has 2 heads of 0 dimensions");
    CHECK(refusal([](auto& args) { args.window = 11; }) ==
          "window is 11, more than the 10 tokens of keys");
    CHECK(refusal([](auto& args) { args.scores = args.scores.first(11); }) ==
          "scores has 11 elements, not [2, 6]");
    CHECK(refusal([](auto& args) { args.keys.data = nullptr; }) == "keys has no data");

    KeyCall call(1, 2, 1, 1, KeyMeasure::Norm);
    call.args.keys.place = Place::Device;
    auto const device = make_cpu_backend(1)->key_score(call.args);
    REQUIRE_FALSE(device);
    CHECK(device.error().message == "keys are in device memory");
}
