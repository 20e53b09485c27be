// Learned attention sinks: a logit of each query head that takes a share and gives nothing.
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/kernels/score_call.h"
#include "tests/support/reference.h"

using namespace dkv;
using test::ScoreCall;
using test::ScoreShape;

namespace {

/// Sinks that hardly count, that count, that take nearly all, and one of each in a group.
std::vector<std::vector<float>> const kSinks{{-5}, {0}, {30}, {-5, 0, 30, 2}};

struct Accumulation : test::AttendingCall<AccumulateArgs> {
    Accumulation(ScoreShape const& shape, Dtype dtype, GroupReduce reduce)
        : AttendingCall(shape, shape.tokens, dtype, reduce, test::Layout::HeadMajor) {
        args.window = shape.window;
    }
};

}  // namespace

TEST_CASE("a sink is one more term in the softmax of its head, and gets no score") {
    test::for_each_backend([](Backend& backend) {
        // q·k = log(1, 2, 3, 4) for both queries of both heads; e^sink = 5 and 10.
        ScoreCall call({1, 2, 2, 4, 1}, Dtype::F32, GroupReduce::None);
        call.queries.fill([](auto...) { return 1.F; });
        call.keys.fill(
            [](auto, auto token, auto) { return std::log(static_cast<float>(token + 1)); });
        call.add_sinks({std::log(5.F), std::log(10.F)});

        REQUIRE(backend.score(call.args));

        std::array const want{(1.0 / 11 + 1.0 / 15) / 2, (2.0 / 11 + 2.0 / 15) / 2,
                              (1.0 / 16 + 1.0 / 20) / 2, (2.0 / 16 + 2.0 / 20) / 2};
        for (std::size_t i = 0; i < want.size(); ++i)
            CHECK(call.scores[i] == doctest::Approx(want[i]));
        CHECK(call.mass[0] == doctest::Approx((want[0] + want[2]) / 2));

        Accumulation all({1, 1, 1, 3, 1}, Dtype::F32, GroupReduce::Mean);
        all.queries.fill([](auto...) { return 1.F; });
        all.keys.fill(
            [](auto, auto token, auto) { return std::log(static_cast<float>(token + 1)); });
        all.add_sinks({std::log(4.F)});
        REQUIRE(backend.accumulate(all.args));
        CHECK(all.scores[0] == doctest::Approx(1.0 / 5 + 1.0 / 7 + 1.0 / 10));
        CHECK(all.scores[1] == doctest::Approx(2.0 / 7 + 2.0 / 10));
    });
}

TEST_CASE("scores with sinks are the reference") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(41);
        for (auto const& sinks : kSinks)
            for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16})
                for (float const softcap : {0.F, 2.F}) {
                    ScoreCall call({2, 4, 9, 300, 64}, dtype, GroupReduce::Max);
                    call.fill(random);
                    call.add_sinks(sinks);
                    call.args.softcap = softcap;
                    CAPTURE(sinks.size());
                    CAPTURE(sinks.front());
                    CAPTURE(softcap);
                    auto const want = test::reference_score(
                        call.queries, call.keys, GroupReduce::Max, 0, softcap, call.sinks);
                    double const relative = test::tolerance(dtype);

                    REQUIRE(backend.score(call.args));
                    CHECK(test::worst_error(call.scores, want.scores, relative) <= 1);
                    CHECK(test::worst_error(call.mass, want.mass, relative) <= 1);
                    CHECK(test::worst_error(call.peaks, want.peaks, relative) <= 1);
                }
    });
}

TEST_CASE("accumulate with sinks is the reference, over several blocks of queries") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(43);
        auto const check = [&](ScoreShape const& shape, GroupReduce reduce,
                               std::vector<float> const& sinks, float softcap) {
            Accumulation call(shape, Dtype::F32, reduce);
            call.fill(random);
            call.add_sinks(sinks);
            call.args.softcap = softcap;
            call.args.per_query = reduce == GroupReduce::Max;
            auto const want = test::reference_accumulate(call.queries, call.keys, call.args);

            REQUIRE(backend.accumulate(call.args));
            CHECK(test::worst_error(call.scores, want, test::tolerance(Dtype::F32)) <= 1);
        };
        for (auto const& sinks : kSinks)
            for (auto const reduce : {GroupReduce::Mean, GroupReduce::Max, GroupReduce::None})
                check({2, 4, 5, 70, 16}, reduce, sinks, reduce == GroupReduce::Mean ? 2.F : 0.F);
        // Of 256 tokens each on a device, of 12 on a CPU.
        check({1, 16, 3, 270, 1}, GroupReduce::Mean, {-5, 0, 3, 30}, 0);
    });
}

TEST_CASE("what a large sink leaves is right to the last digits, and a huge one leaves nothing") {
    test::for_each_backend([](Backend& backend) {
        // Every logit is 0: each of the tokens has 1 / (tokens seen + e^sink).
        ScoreCall call({1, 1, 1, 3, 4}, Dtype::F32, GroupReduce::Mean);
        call.add_sinks({30});
        REQUIRE(backend.score(call.args));
        double const want = 1 / (3 + std::exp(30.0));
        CHECK(call.scores[0] / want == doctest::Approx(1).epsilon(2e-5));
        CHECK(call.scores[1] / want == doctest::Approx(1).epsilon(2e-5));

        for (float const huge : {1e4F, 3e38F, std::numeric_limits<float>::max()}) {
            call.add_sinks({huge});
            REQUIRE(backend.score(call.args));
            CHECK(call.scores == std::vector<float>{0, 0});
        }
        call.add_sinks({std::numeric_limits<float>::lowest()});
        REQUIRE(backend.score(call.args));
        CHECK(call.scores[0] == doctest::Approx(1.0 / 3));
    });
}

TEST_CASE("the mass of the prefix, the window and the sinks adds up to 1") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(47);
        ScoreCall call({2, 3, 5, 400, 64}, Dtype::F32, GroupReduce::Sum);
        call.fill(random);
        call.add_sinks({1, 4, 6});
        REQUIRE(backend.score(call.args));
        auto const want =
            test::reference_score(call.queries, call.keys, GroupReduce::Sum, 0, 0, call.sinks);
        for (std::uint32_t head = 0; head < 2; ++head) {
            auto const begin = call.mass.begin() + (head == 0 ? 0 : 395);
            double const prefix = std::accumulate(begin, begin + 395, 0.0);
            CHECK(prefix + want.window_share[head] + want.sink_share[head] ==
                  doctest::Approx(1).epsilon(1e-5));
            CHECK(want.sink_share[head] > 0.1);
        }
    });
}

TEST_CASE("sinks that do not fit are refused by name") {
    auto const refusal = [](std::vector<float> const& sinks) {
        ScoreCall score({2, 3, 4, 10, 8}, Dtype::F16, GroupReduce::Mean);
        Accumulation accumulate({2, 3, 4, 10, 8}, Dtype::F16, GroupReduce::Mean);
        score.args.sink_logits = accumulate.args.sink_logits = sinks;
        CHECK(score.refusal() == accumulate.refusal());
        return score.refusal();
    };
    constexpr float infinity = std::numeric_limits<float>::infinity();
    CHECK(refusal({0, 0, 0, 0, 0, 0}).empty());
    CHECK(refusal({0, 0, 0}) == "sink_logits has 3 values, not 6: one per query head");
    CHECK(refusal({0, 0, std::nanf(""), 0, 0, 0}) == "sink_logits[2] is nan, not a finite number");
    CHECK(refusal({-infinity, 0, 0, 0, 0, 0}) == "sink_logits[0] is -inf, not a finite number");
}
