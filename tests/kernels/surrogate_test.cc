#include "kernels/ops/surrogate.h"

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

/// One call's memory.
struct Call {
    Call(std::uint32_t heads,
         std::uint32_t tokens,
         std::uint32_t window,
         std::uint32_t head_dim,
         std::uint32_t pairs = 0,
         Dtype dtype = Dtype::F32,
         Layout layout = Layout::HeadMajor)
        : keys(dtype, heads, tokens, head_dim, layout),
          values(dtype, heads, tokens, head_dim, layout),
          weights(heads * surrogate_features(heads, head_dim), 0.F),
          scores(std::size_t{heads} * (tokens - window)) {
        for (std::uint32_t i = 0; i < pairs; ++i)
            frequencies.push_back(static_cast<float>(std::pow(1e4, -1.0 * i / pairs)));
        table = turns(frequencies, tokens);
        args = {.keys = keys.view,
                .values = values.view,
                .weights = weights,
                .turns = table,
                .scores = scores,
                .window = window,
                .pairs = pairs};
    }
    Rows keys;
    Rows values;
    std::vector<float> weights;
    std::vector<float> frequencies;
    std::vector<float> table;
    std::vector<float> scores;
    SurrogateArgs args;
};

std::string refusal(SurrogateArgs const& args) {
    auto const result = check(args);
    if (!result) CHECK(result.error().code == ErrorCode::InvalidArgument);
    return result ? "" : result.error().message;
}

}  // namespace

TEST_CASE("a head is scored by the keys and values of all heads, their norms and a constant") {
    test::for_each_backend([](Backend& backend) {
        Call call(2, 3, 1, 1);
        call.keys.fill([](auto head, auto token, auto) {
            return head == 0 ? 2.F : 4.F + static_cast<float>(token);
        });
        call.values.fill([](auto, auto token, auto) { return static_cast<float>(token + 1); });
        // K of head 0 and 1, V of both, ln ‖k‖ of both, ln ‖v‖ of both, 1.
        std::vector<float> const of_0{1, 10, 100, 0, 0, 0, 0, 0, 0.5F};
        std::vector<float> const of_1{0, 0, 0, 0, 1, 0, 0, 2, 0};
        std::ranges::copy(of_0, call.weights.begin());
        std::ranges::copy(of_1, call.weights.begin() + 9);
        REQUIRE(backend.surrogate(call.args));
        CHECK(call.scores[0] == doctest::Approx(2 + 40 + 100 + 0.5));
        CHECK(call.scores[1] == doctest::Approx(2 + 50 + 200 + 0.5));
        CHECK(call.scores[2] == doctest::Approx(std::log(2.0)));
        CHECK(call.scores[3] == doctest::Approx(std::log(2.0) + 2 * std::log(2.0)));
    });
}

TEST_CASE("keys are turned back to position 0: the same key scores the same anywhere") {
    test::for_each_backend([](Backend& backend) {
        for (bool const interleaved : {false, true}) {
            CAPTURE(interleaved);
            Call call(1, 300, 0, 8, 3);
            call.args.interleaved = interleaved;
            call.keys.fill([&](auto, auto token, auto dim) {
                if (dim >= 6) return 1.F;  // Not rotated.
                auto const pair = interleaved ? dim / 2 : dim % 3;
                bool const second = interleaved ? dim % 2 == 1 : dim >= 3;
                double const angle = token * double{call.frequencies[pair]};
                return static_cast<float>(second ? std::sin(angle) : std::cos(angle));
            });
            for (std::size_t i = 0; i < 8; ++i)
                call.weights[i] = static_cast<float>(1U << i);
            REQUIRE(backend.surrogate(call.args));
            double const want = interleaved ? 1 + 4 + 16 + 64 + 128 : 1 + 2 + 4 + 64 + 128;
            double worst = 0;
            for (float const score : call.scores)
                worst = std::max(worst, std::abs(score - want));
            CHECK(worst < 1e-4);
        }
    });
}

TEST_CASE("attention that was seen counts where it is more than what is foreseen") {
    test::for_each_backend([](Backend& backend) {
        Call call(1, 5, 1, 1);
        call.keys.fill([](auto, auto, auto) { return 1.F; });
        call.values.fill([](auto, auto token, auto) { return token == 3 ? std::nanf("") : 1.F; });
        call.weights[4] = -3;  // The constant.
        std::vector<float> const attention{0.5F, 0.001F, 0, 1};
        call.args.attention = attention;
        REQUIRE(backend.surrogate(call.args));
        CHECK(call.scores[0] == doctest::Approx(std::log(0.5)));
        CHECK(call.scores[1] == doctest::Approx(-3));
        CHECK(call.scores[2] == doctest::Approx(-3));
        CHECK(std::isnan(call.scores[3]));
        call.weights[4] = -30;
        REQUIRE(backend.surrogate(call.args));
        CHECK(call.scores[2] == doctest::Approx(-20 * std::log(2.0)));
    });
}

TEST_CASE("the surrogate is the reference at every shape, dtype and layout") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto const pick = [&](auto const& list) { return list[random() % list.size()]; };
    test::for_each_backend([&](Backend& backend) {
        for (int round = 0; round < 30; ++round) {
            auto const heads = pick(std::array{1U, 2U, 3U, 5U, 35U});
            auto const tokens = 1 + static_cast<std::uint32_t>(random() % (heads > 5 ? 90 : 400));
            auto const window = static_cast<std::uint32_t>(random() % tokens);
            auto const dim = pick(std::array{1U, 3U, 16U, 33U, 64U, 80U});
            auto const pairs = static_cast<std::uint32_t>(random() % (dim / 2 + 1));
            auto const dtype = pick(std::array{Dtype::F32, Dtype::F16, Dtype::Bf16});
            auto const layout = pick(
                std::array{Layout::HeadMajor, Layout::TokenMajor, Layout::DimMajor, Layout::Odd});
            Call call(heads, tokens, window, dim, pairs, dtype, layout);
            call.args.interleaved = random() % 2 == 1;
            call.keys.fill_normal(random);
            call.values.fill_normal(random);
            std::normal_distribution<float> normal;
            for (float& weight : call.weights)
                weight = normal(random);
            std::vector<float> attention;
            if (random() % 2 == 0)
                for (std::size_t i = 0; i < call.scores.size(); ++i)
                    attention.push_back(std::abs(normal(random)));
            call.args.attention = attention;
            INFO(round, ": ", heads, " heads, ", tokens, " tokens, window ", window, ", dim ", dim,
                 ", ", pairs, " pairs, ", name_of(dtype), ", layout ", static_cast<int>(layout));
            auto const want =
                test::reference_surrogate(call.keys, call.values, call.args, call.frequencies);
            REQUIRE(backend.surrogate(call.args));
            double worst = 0;
            for (std::size_t i = 0; i < want.size(); ++i)
                worst = std::max(worst, std::abs(call.scores[i] - want[i]));
            // The sum is of that many products of about 1.
            CHECK(worst < 2e-6 * std::sqrt(heads * dim) * 20);
        }
    });
}

TEST_CASE("scores are the same on any number of threads") {
    std::mt19937 random(3);
    Call call(3, 1500, 20, 64, 32, Dtype::Bf16);
    call.keys.fill_normal(random);
    call.values.fill_normal(random);
    for (float& weight : call.weights)
        weight = static_cast<float>(random() % 100) / 100;
    REQUIRE(make_cpu_backend(1)->surrogate(call.args));
    auto const want = call.scores;
    REQUIRE(make_cpu_backend(0)->surrogate(call.args));
    CHECK(call.scores == want);
}

TEST_CASE("NaN or an infinity in K or V makes that score NaN and no other") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(4);
        for (float const poison : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
            Call call(2, 40, 2, 16, 4);
            call.keys.fill_normal(random);
            call.values.fill_normal(random);
            std::ranges::fill(call.weights, 0.25F);
            REQUIRE(backend.surrogate(call.args));
            auto const want = call.scores;
            call.keys.set(1, 7, 3, poison);
            call.values.set(0, 9, 15, poison);
            REQUIRE(backend.surrogate(call.args));
            for (std::size_t i = 0; i < want.size(); ++i) {
                CAPTURE(i);
                if (i % 38 == 7 || i % 38 == 9)
                    CHECK(std::isnan(call.scores[i]));
                else
                    CHECK(call.scores[i] == want[i]);
            }
        }
    });
}

TEST_CASE("what the surrogate cannot be given is refused by name") {
    Call const call(2, 70, 3, 8, 4);
    CHECK(refusal(call.args).empty());

    SurrogateArgs args = call.args;
    args.window = 71;
    CHECK(refusal(args) == "window is 71, more than the 70 tokens of keys");
    args = call.args;
    args.pairs = 5;
    CHECK(refusal(args) == "pairs is 5, more than half of the 8 dimensions of keys");
    args = call.args;
    args.values.tokens = 69;
    CHECK(refusal(args) == "values is [2, 69, 8], not [2, 70, 8]");
    args = call.args;
    args.values.dtype = Dtype::F16;
    CHECK(refusal(args) == "values are of another dtype, or in another memory, than keys");
    args = call.args;
    args.weights = args.weights.first(70);
    CHECK(refusal(args) == "weights has 70 elements, not [2, 37]");
    args = call.args;
    args.turns = args.turns.first(8);
    CHECK(refusal(args) == "turns has 8 elements, not [66, 2, 4]");
    args = call.args;
    args.attention = args.scores.first(1);
    CHECK(refusal(args) == "attention has 1 elements, not [2, 67]");
    args = call.args;
    args.scores = args.scores.first(1);
    CHECK(refusal(args) == "scores has 1 elements, not [2, 67]");
}
