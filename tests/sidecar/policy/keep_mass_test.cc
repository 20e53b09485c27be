#include <array>
#include <cmath>

#include <doctest/doctest.h>

#include "tests/sidecar/policy/support.h"
#include "tests/support/results.h"

using namespace dkv;

namespace {

PolicyParams params_keeping(double mass,
                            char const* name = "dynamickv",
                            Granularity granularity = Granularity::Layer) {
    return resolve({.name = name, .window = 4, .granularity = granularity, .keep_mass = mass})
        .value();
}

/// What the two heads of the first layer get; N is 4.
std::vector<std::uint32_t> fewest(PolicyParams const& params,
                                  MassCurve const& head0,
                                  MassCurve const& head1) {
    auto const policy = make_policy(params, shape_of(2, 2, 8, 4));
    REQUIRE(policy);
    policy->take_mass(0, std::array{head0, head1});
    CHECK(policy->budgets().layer(1)[0] == 4);  // Not seen yet.
    auto const budgets = policy->budgets().layer(0);
    return {budgets.begin(), budgets.end()};
}

using Tokens = std::vector<std::uint32_t>;

MassCurve const kSharp{.5, .75, .875, .9375, 1};
MassCurve const kFlat{.25, .375, .5, .75, 1};

}  // namespace

TEST_CASE("keep_mass keeps the fewest tokens, as many in every head of a layer") {
    // Means: .375 .5625 .6875 .84375 1
    CHECK(fewest(params_keeping(.25), kSharp, kFlat) == Tokens{0, 0});
    CHECK(fewest(params_keeping(.375), kSharp, kFlat) == Tokens{0, 0});
    CHECK(fewest(params_keeping(.5), kSharp, kFlat) == Tokens{1, 1});
    CHECK(fewest(params_keeping(.75), kSharp, kFlat) == Tokens{3, 3});
    CHECK(fewest(params_keeping(1), kSharp, kFlat) == Tokens{4, 4});
}

TEST_CASE("keep_mass per head keeps the fewest tokens in each head") {
    for (Granularity const granularity : {Granularity::Head, Granularity::LayerHead}) {
        CHECK(fewest(params_keeping(.5, "dynamickv", granularity), kSharp, kFlat) == Tokens{0, 2});
        CHECK(fewest(params_keeping(.75, "dynamickv", granularity), kSharp, kFlat) == Tokens{1, 3});
    }
    // Granularity is dynamickv's.
    CHECK(fewest(params_keeping(.75, "snapkv", Granularity::Head), kSharp, kFlat) == Tokens{3, 3});
}

TEST_CASE("keep_mass is reached as it is reported, in f32, too") {
    double const below = static_cast<double>(.95F);  // 0.949999988
    REQUIRE(below < .95);
    MassCurve const curve{.5, .9, .95, .9500001, 1};
    CHECK(fewest(params_keeping(.95), curve, curve) == Tokens{3, 3});
    CHECK(fewest(params_keeping(below), curve, curve) == Tokens{2, 2});
}

TEST_CASE("keep_mass keeps all where rounding, or a NaN, leaves even that short of the target") {
    MassCurve const short_of_one{.5, .9, .99, .999, 1 - 1e-16};
    MassCurve const none(5, std::nan(""));
    CHECK(fewest(params_keeping(1), short_of_one, short_of_one) == Tokens{4, 4});
    CHECK(fewest(params_keeping(.1), kSharp, none) == Tokens{4, 4});
    CHECK(fewest(params_keeping(.1, "dynamickv", Granularity::Head), kSharp, none) == Tokens{0, 4});
}

TEST_CASE("keep_mass knows a layer's budget once the layer was ranked, and ranks all of it") {
    for (char const* const name : {"snapkv", "pyramidkv", "dynamickv"}) {
        CAPTURE(name);
        auto const policy = make_policy(params_keeping(.9, name), shape_of(3, 2, 100, 4));

        REQUIRE(policy);
        CHECK(policy->ranking() == Ranking::Scores);
        CHECK(policy->wants_mass());
        CHECK_FALSE(policy->budgets_known());
        CHECK(policy->budgets_known_by_layer());
        CHECK_FALSE(policy->tally_total(2));
        CHECK(policy->stage_limits(2)[1] == 96);
    }
}

TEST_CASE("keep_mass keeps whole only what is no longer than the window, whatever the capacity") {
    CHECK_FALSE(make_policy(params_keeping(.9), shape_of(3, 2, 4, 4)));
    CHECK(make_policy(params_keeping(.9), shape_of(3, 2, 5, 4)));
    auto fullkv = params_keeping(.9);
    fullkv.name = "fullkv";
    CHECK_FALSE(make_policy(fullkv, shape_of(3, 2, 500, 4)));
}
