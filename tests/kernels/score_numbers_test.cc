// Score of numbers that are hard: beyond f32, none, and capped.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "tests/kernels/score_call.h"
#include "tests/support/reference.h"

using namespace dkv;
using Call = test::ScoreCall;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();

}  // namespace

TEST_CASE("a soft cap of any size leaves scores finite") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(31);
        for (float const softcap : {1e-45f, 1e-38f, 1e-3f, 1e3f, 1e38f, 3.4e38f, kLargest}) {
            CAPTURE(softcap);
            Call call({1, 2, 3, 90, 16}, Dtype::F16, GroupReduce::Mean);
            call.fill(random);
            call.keys.set(0, 5, 3, std::nanf(""));
            call.keys.set(0, 6, 3, kInf);
            call.args.softcap = softcap;
            REQUIRE(backend.score(call.args));
            CHECK(std::ranges::all_of(call.scores, [](float score) {
                return std::isfinite(score) && score >= 0 && score <= 1;
            }));
        }
    });
}

TEST_CASE("a soft cap far above every logit is no soft cap") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(37);
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            Call call({1, 2, 3, 90, 16}, dtype, GroupReduce::Mean);
            call.fill(random);
            auto const want = test::reference_score(call.queries, call.keys, GroupReduce::Mean, 3);
            call.args.scale = 3;
            for (float const softcap : {1e7f, 1e20f, 1e38f, 2.4e38f, 3.4e38f, kLargest}) {
                CAPTURE(softcap);
                call.args.softcap = softcap;
                REQUIRE(backend.score(call.args));
                CHECK(test::worst_error(call.scores, want.scores, test::tolerance(dtype)) <= 1);
                CHECK(test::worst_error(call.mass, want.mass, test::tolerance(dtype)) <= 1);
            }
        }
    });
}

TEST_CASE("large logits neither overflow nor vanish") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(11);
        Call call({1, 4, 32, 400, 64}, Dtype::F32, GroupReduce::Mean);
        call.fill(random);
        call.args.scale = 40;  // Logits of some thousands: e^x is far outside f32.
        auto const want = test::reference_score(call.queries, call.keys, GroupReduce::Mean, 40);
        REQUIRE(backend.score(call.args));
        // An f32 logit of 1000 is known to 1e-4, and so is its exponential.
        CHECK(test::worst_error(call.scores, want.scores, 2e-3) <= 1);
    });
}

TEST_CASE("NaN and infinite inputs give finite scores") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(5);
        float const nan = std::nanf("");
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            for (float const poison : {nan, kInf, -kInf}) {
                for (bool const all : {false, true}) {
                    Call call({2, 3, 8, 200, 64}, dtype, GroupReduce::Mean);
                    call.fill(random);
                    if (all)
                        call.keys.fill([&](auto...) { return poison; });
                    else
                        call.keys.set(1, 77, 3, poison);
                    REQUIRE(backend.score(call.args));
                    auto const finite = [](float x) {
                        return std::isfinite(x) && x >= 0 && x <= 1;
                    };
                    CHECK(std::all_of(call.scores.begin(), call.scores.end(), finite));
                    CHECK(std::all_of(call.mass.begin(), call.mass.end(), finite));
                }
            }
        }
    });
}

TEST_CASE("a token whose key is NaN takes nothing from the others") {
    test::for_each_backend([](Backend& backend) {
        Call call({1, 1, 1, 3, 1}, Dtype::F32, GroupReduce::Mean);
        call.queries.fill([](auto...) { return 1.f; });
        call.keys.fill([](auto, auto token, auto) { return token == 0 ? std::nanf("") : 0.f; });
        REQUIRE(backend.score(call.args));
        CHECK(call.scores == std::vector{0.f, 0.5f});
    });
}
