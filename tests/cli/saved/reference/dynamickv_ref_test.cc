#include "cli/saved/reference/dynamickv_ref.h"

#include <cmath>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;
using namespace dkv::reference;

namespace {

using Updates = std::vector<std::vector<std::int64_t>>;
using Layers = std::vector<std::vector<float>>;

DynamicKvRef make(DynamicKvRefParams const& params) {
    auto policy = DynamicKvRef::create(params);
    REQUIRE(policy);
    return std::move(policy).value();
}

DynamicKvRef run(DynamicKvRefParams const& params, Layers const& layers) {
    auto policy = make(params);
    for (auto const& layer : layers)
        REQUIRE(policy.add_layer(layer));
    return policy;
}

/// One head, 6 prefix tokens, a window of 2, base 2, r_max 2: B is 4. An update every 2 layers.
DynamicKvRefParams small(std::uint32_t layers) {
    return {.layers = layers,
            .heads = 1,
            .prompt_tokens = 8,
            .window = 2,
            .base = 2,
            .r_max = 2.0,
            .update_interval = 2};
}

std::vector<float> const kFalling = {9, 8, 7, 1, 1, 1};
std::vector<float> const kRising = {1, 2, 3, 4, 5, 6};

}  // namespace

TEST_CASE("dynamickv-ref gives the last layer what the integer floors lost") {
    // The 4 largest are 9 8 7 | 6: 3 and 1, floored over 2 layers to 1 and 0. The last layer gets
    // 4 / 2 - 1 more: shares 1/2 and 1/2 of B = 4, and 2 + 2 is base * L already.
    auto const policy = run(small(2), {kFalling, kRising});

    CHECK(policy.stage_limit() == 4);
    CHECK(policy.budgets_per_update() == Updates{{2, 2}});
    CHECK(policy.stored()[0][0] == StoredList{0, 1, 6, 7});
    CHECK(policy.stored()[1][0] == StoredList{5, 4, 6, 7});
    CHECK(policy.duplicate_entries() == 0);
}

TEST_CASE("dynamickv-ref can leave a layer without prefix") {
    auto params = small(2);
    params.base = 1;
    params.r_max = 4.0;

    auto const policy = run(params, {{9, 8, 7, 6, 5, 4}, {0, 0, 0, 0, 0, 1}});

    CHECK(policy.budgets_per_update() == Updates{{2, 0}});
    CHECK(policy.stored()[1][0] == StoredList{6, 7});
}

TEST_CASE("dynamickv-ref stores window tokens twice when a budget exceeds what is stored") {
    // After layer 1 of 3: counts 1 and 0, so that layer 0 gets all of base * L = 6, of 4 stored.
    auto const policy = run(small(3), {kFalling, kRising, kRising});

    CHECK(policy.budgets_per_update() == Updates{{6, 0}});
    CHECK(policy.stored()[0][0].size() == 8);
    CHECK(StoredList(policy.stored()[0][0].end() - 4, policy.stored()[0][0].end()) ==
          StoredList{6, 7, 6, 7});
    CHECK(policy.duplicate_entries() == 2);
}

TEST_CASE("dynamickv-ref leaves layers that no update reaches at their maximum") {
    auto const policy = run(small(3), {kFalling, kRising, kRising});

    CHECK(policy.stored()[2][0] == StoredList{5, 4, 3, 2, 6, 7});
}

TEST_CASE("dynamickv-ref gives the last layer everything when there are fewer scores than wanted") {
    // 60 scores, 120 wanted: 15 a layer, 3 after the floor. The correction is made with the 120:
    // 120 / 4 - 12 = 18, so that the shares are 3 3 3 21 of 30, of B = 5: 0 0 0 3.
    DynamicKvRefParams const params{
        .layers = 4, .heads = 3, .prompt_tokens = 7, .window = 2, .base = 10};
    std::vector<float> const layer = {0, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8};

    auto const policy = run(params, {layer, layer, layer, layer});

    CHECK(policy.budgets_per_update() == Updates{{0, 0, 0, 40}});
    CHECK(policy.stored()[0][1] == StoredList{5, 6});
    CHECK(policy.stored()[3][2] == StoredList{0, 2, 4, 1, 3, 5, 6});
}

TEST_CASE("dynamickv-ref refuses with a typed error where the release divides by zero") {
    // Both layers have a share of 1/2 of B = 1.
    auto params = small(4);
    params.r_max = 0.5;
    auto policy = make(params);
    REQUIRE(policy.add_layer(kFalling));

    auto const added = policy.add_layer(kFalling);

    REQUIRE_FALSE(added);
    CHECK(added.error().code == ErrorCode::InvalidArgument);
    CHECK(added.error().message ==
          "every layer's share of 1 tokens is below 1, so that the budgets are divided by zero "
          "(the release raises ZeroDivisionError)");
    CHECK(policy.raised() == "ZeroDivisionError");
    CHECK(policy.budgets_per_update().empty());
    CHECK(policy.add_layer(kFalling).error().code == ErrorCode::BadState);
}

TEST_CASE("dynamickv-ref refuses with a typed error where the release has no shares at all") {
    auto params = small(8);
    params.base = 0;
    auto policy = make(params);
    REQUIRE(policy.add_layer(kFalling));

    CHECK(policy.add_layer(kFalling).error().message ==
          "no layer holds 2 of the largest scores, so that every share is 0 / 0 (the release "
          "raises ValueError)");

    params.layers = 2;
    auto last = make(params);
    REQUIRE(last.add_layer(kFalling));
    CHECK(last.add_layer(kFalling).error().message ==
          "base is 0, and the release prints the first of the top 0 (the release raises "
          "IndexError)");
}

TEST_CASE("dynamickv-ref takes an even kernel's column too many until a head chooses it") {
    auto policy = make(small(4));

    CHECK(policy.add_layer(std::vector<float>{9, 8, 7, 6, 5, 4, 3}));

    CHECK(policy.add_layer(std::vector<float>{9, 8, 7, 6, 5, 4, 10}).error().message ==
          "index 6 is out of bounds for 6 keys (the release raises RuntimeError)");
}

TEST_CASE("dynamickv-ref keeps a prompt that is no longer than the window") {
    for (std::uint32_t tokens : {0u, 1u, 2u}) {
        CAPTURE(tokens);
        auto params = small(2);
        params.prompt_tokens = tokens;

        auto const policy = run(params, {{}, {}});

        CHECK(policy.budgets_per_update().empty());
        CHECK(policy.stored()[1][0] == (tokens == 0   ? StoredList{}
                                        : tokens == 1 ? StoredList{0}
                                                      : StoredList{0, 1}));
    }
}

TEST_CASE("dynamickv-ref refuses parameters and scores that make no sense") {
    auto const message = [](auto change) {
        auto params = small(2);
        change(params);
        return DynamicKvRef::create(params).error().message;
    };
    CHECK(message([](auto& params) { params.layers = 0; }) == "layers is 0");
    CHECK(message([](auto& params) { params.heads = 0; }) == "heads is 0");
    CHECK(message([](auto& params) { params.window = 0; }) == "window is 0");
    CHECK(message([](auto& params) { params.update_interval = 0; }) == "update_interval is 0");
    CHECK(message([](auto& params) { params.r_max = -1; }) == "r_max is -1");
    CHECK(message([](auto& params) { params.r_max = INFINITY; }) == "r_max is inf");
    CHECK(message([](auto& params) { params.prompt_tokens = 1u << 31; }) ==
          "prompt_tokens is 2147483648");

    auto policy = make(small(1));
    CHECK(policy.add_layer(std::vector<float>(5)).error().message ==
          "5 scores for 1 heads and a prefix of 6 tokens");
    REQUIRE(policy.add_layer(kFalling));
    CHECK(policy.add_layer(kFalling).error().message == "all 1 layers are there");
}
