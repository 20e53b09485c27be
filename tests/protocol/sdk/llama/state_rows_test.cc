#include "protocol/sdk/llama/state_rows.h"

#include <doctest/doctest.h>

#include "tests/support/llama_sample.h"

namespace dkv::llama {
namespace {

using test::LlamaSample;

constexpr ModelShape kShape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 4};

std::vector<std::byte> state_of(LlamaSample const& sample) {
    auto const text = sample.text();
    auto const bytes = std::as_bytes(std::span(text));
    return {bytes.begin(), bytes.end()};
}

LlamaSample sample_of(std::vector<std::int32_t> positions, bool transposed = false) {
    LlamaSample sample{.kind = LlamaSample::Blob};
    sample.positions = std::move(positions);
    sample.transposed = transposed;
    return sample;
}

TEST_CASE("cells in any order become cells in the order of their positions") {
    for (bool const transposed : {false, true}) {
        CAPTURE(transposed);
        auto mixed = state_of(sample_of({3, 0, 1, 4, 2}, transposed));
        auto const sorted = state_of(sample_of({0, 1, 2, 3, 4}, transposed));
        CHECK(same_rows(mixed, sorted));
        CHECK(mixed != sorted);

        auto const rows = read_state(mixed, kShape);

        REQUIRE(rows);
        CHECK(rows.value().layout.positions == std::vector<std::int32_t>{0, 1, 2, 3, 4});
        CHECK(mixed == sorted);
    }
}

TEST_CASE("positions that are missing or there twice are refused, and the state stays as it was") {
    auto const refusal = [](std::vector<std::int32_t> positions) {
        auto state = state_of(sample_of(std::move(positions)));
        auto const before = state;
        auto const rows = read_state(state, kShape);
        REQUIRE_FALSE(rows);
        CHECK(state == before);
        return rows.error().message;
    };

    CHECK(refusal({0, 1, 4, 3}) ==
          "the sequence has position 3 where 2 was expected: the context was shifted, or a part "
          "was removed");
    CHECK(refusal({2, 1, 0, 1}) ==
          "the sequence has position 1 where 2 was expected: the context was shifted, or a part "
          "was removed");
    CHECK(refusal({3, 2, 1}) ==
          "the sequence has position 1 where 0 was expected: the context was shifted, or a part "
          "was removed");
}

TEST_CASE("a state of another shape than the model's is refused by what differs") {
    auto state = state_of(sample_of({0, 1, 2}));
    auto const message = [&](ModelShape shape) { return read_state(state, shape).error().message; };

    CHECK(message({.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 4}) ==
          "the state has 2 layers, the model 3");
    CHECK(message({.layers = 2, .q_heads = 4, .kv_heads = 1, .head_dim = 4}) ==
          "a row has 8 elements, the model 1 KV heads of 4");
}

TEST_CASE("states with other rows, other positions or another rotation are not the same") {
    auto sample = sample_of({0, 1, 2, 3});
    sample.says_rotation = true;
    auto const state = state_of(sample);
    CHECK(same_rows(state, state));

    auto turned = sample;
    turned.key_rotation = 64;
    CHECK_FALSE(same_rows(state, state_of(turned)));

    auto moved = sample;
    moved.positions = {0, 1, 2, 4};
    CHECK_FALSE(same_rows(state, state_of(moved)));

    auto changed = state;
    changed.back() ^= std::byte{1};
    CHECK_FALSE(same_rows(state, changed));
}

}  // namespace
}  // namespace dkv::llama
