#include "cli/saved/formats/key_order.h"

#include <vector>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;

namespace {

std::vector<float> brought(std::vector<float> rows,
                           RopeFacts const& rope,
                           KeyOrder to,
                           std::uint32_t head_dim) {
    auto reorder = KeyReorder::create(rope, to, head_dim, Dtype::F32);
    REQUIRE(reorder);
    reorder.value().apply(std::as_writable_bytes(std::span(rows)));
    return rows;
}

}  // namespace

TEST_CASE("the dims of pairs become those of halves, row by row, and back") {
    std::vector<float> const pairs{0, 1, 2, 3, 10, 11, 12, 13};
    std::vector<float> const halves{0, 2, 1, 3, 10, 12, 11, 13};

    CHECK(brought(pairs, {.interleaved = true}, KeyOrder::Halves, 4) == halves);
    CHECK(brought(halves, {}, KeyOrder::Pairs, 4) == pairs);
    CHECK(brought(pairs, {.interleaved = true}, KeyOrder::Pairs, 4) == pairs);
}

TEST_CASE("dims that do not turn stay where they are") {
    CHECK(brought({0, 1, 2, 3, 4, 5}, {.interleaved = true, .dims = 4}, KeyOrder::Halves, 6) ==
          std::vector<float>{0, 2, 1, 3, 4, 5});
}

TEST_CASE("dims that no rope turns are refused") {
    auto const odd =
        KeyReorder::create({.interleaved = true, .dims = 3}, KeyOrder::Halves, 4, Dtype::F32);
    REQUIRE_FALSE(odd);
    CHECK(odd.error().message == "rope over 3 dims, of rows of 4");
    CHECK_FALSE(KeyReorder::create({.dims = 6}, KeyOrder::Pairs, 4, Dtype::F32));
}

TEST_CASE("orders have names") {
    CHECK(key_order("pairs") == KeyOrder::Pairs);
    CHECK(key_order("halves") == KeyOrder::Halves);
    CHECK_FALSE(key_order("norm"));
}
