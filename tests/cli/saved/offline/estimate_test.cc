// What would be kept of a prompt that unasked has read yet.
#include "cli/saved/offline/estimate.h"

#include <numeric>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;
using offline::estimate;

namespace {

/// A token is 2 KV heads of K and V of 8 f32: 128 bytes a layer.
constexpr Geometry kModel{.layers = 4, .q_heads = 4, .kv_heads = 2, .head_dim = 8};
constexpr std::uint64_t kToken = 128;

std::string refusal(PolicyRequest const& request, std::uint32_t tokens = 100) {
    auto const made = estimate(kModel, tokens, request);
    return made ? std::string() : made.error().message;
}

}  // namespace

TEST_CASE("equal budgets are known, and packed layer by layer beside one that is whole") {
    auto const made = estimate(kModel, 100, {.name = "snapkv", .capacity = 20, .window = 4});
    REQUIRE(made);

    CHECK(made.value().lengths == std::vector<std::uint32_t>(8, 20));
    CHECK(made.value().bytes_full == 4 * 100 * kToken);
    CHECK(made.value().bytes_kept == 4 * 20 * kToken);
    CHECK(made.value().peak_bytes == (3 * 20 + 100) * kToken);
}

TEST_CASE("a pyramid's budgets are known, and as large together as equal ones") {
    auto const made = estimate(kModel, 100, {.name = "pyramidkv", .capacity = 20, .window = 4});
    REQUIRE(made);

    auto const& lengths = made.value().lengths;
    CHECK(std::accumulate(lengths.begin(), lengths.end(), 0U) == 8 * 20);
    CHECK(lengths.front() > lengths.back());
    CHECK(made.value().bytes_kept == 4 * 20 * kToken);
}

TEST_CASE("dynamickv's sum is known, its layers are not; it stages more than it keeps") {
    auto const made = estimate(
        kModel, 100,
        {.name = "dynamickv", .capacity = 20, .window = 4, .r_max = 3.0, .update_interval = 2});
    REQUIRE(made);

    CHECK(made.value().lengths.empty());
    CHECK(made.value().bytes_kept == 4 * 20 * kToken);
    // 48 of the prefix are staged of each layer; after the second the two are cut to 64 together,
    // after that the third comes to 112 and the fourth to 160, each beside its whole layer.
    CHECK(made.value().peak_bytes == (64 + 2 * 48 + 4 * 4 + 100) * kToken);
}

TEST_CASE("heads that share a layer's budget are unknown, the layer is not") {
    auto const made = estimate(kModel, 100,
                               {.name = "dynamickv",
                                .capacity = 20,
                                .window = 4,
                                .r_max = 3.0,
                                .granularity = Granularity::Head});
    REQUIRE(made);

    CHECK(made.value().lengths.empty());
    CHECK(made.value().bytes_kept == 4 * 20 * kToken);
    CHECK(made.value().peak_bytes == (3 * 20 + 100) * kToken);
}

TEST_CASE("a prompt no longer than the capacity is kept whole") {
    auto const made = estimate(kModel, 20, {.name = "snapkv", .capacity = 20, .window = 4});
    REQUIRE(made);

    CHECK(made.value().lengths == std::vector<std::uint32_t>(8, 20));
    CHECK(made.value().bytes_kept == made.value().bytes_full);
    CHECK(made.value().peak_bytes == made.value().bytes_full);
}

TEST_CASE("a size may be a share or bytes of K and V") {
    auto const share = estimate(kModel, 100, {.name = "snapkv", .window = 4, .ratio = 0.25});
    REQUIRE(share);
    CHECK(share.value().params.capacity == 25);
    auto const bytes =
        estimate(kModel, 100, {.name = "snapkv", .window = 4, .bytes = 4 * 30 * kToken + 100});
    REQUIRE(bytes);
    CHECK(bytes.value().params.capacity == 30);
}

TEST_CASE("what cannot be estimated is refused") {
    CHECK(refusal({.name = "snapkv", .keep_mass = 0.9}) ==
          "how many tokens hold 0.9 of the attention shows only once there is attention: dkv "
          "compact or dkv sweep on a saved cache");
    CHECK(refusal({.name = "snapkv"}, 0) == "prompt_tokens is 0, not at least 1");
    CHECK(refusal({.name = "snapkv", .capacity = 3, .window = 4}) ==
          "capacity is 3, below the window of 4 tokens that are always kept");
    auto const made = estimate({.layers = 1, .q_heads = 3, .kv_heads = 2, .head_dim = 8}, 100,
                               {.name = "snapkv"});
    REQUIRE_FALSE(made);
    CHECK(made.error().code == ErrorCode::InvalidArgument);
}
