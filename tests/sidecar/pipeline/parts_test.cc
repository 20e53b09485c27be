// The parts of a job that are plain arithmetic.
#include <doctest/doctest.h>

#include "sidecar/pipeline/ranked_layer.h"
#include "sidecar/pipeline/row_lists.h"
#include "sidecar/pipeline/savings.h"

using namespace dkv;

namespace {

using Ids = std::vector<std::int32_t>;
using Lengths = std::vector<std::uint32_t>;

RankedLayer ranked_layer(Ids const& ids, Lengths const& lengths, std::vector<float> const& mass) {
    return best_of(std::make_shared<Ranks const>(make_ranks(ids, lengths, mass, 4)), lengths);
}

Ids ids_of(RankedHead const& head) {
    return {head.ids.begin(), head.ids.end()};
}

/// Two heads over a prefix of 4: {2, 0} and {3}.
RankedLayer two_heads() {
    std::vector<float> const mass{0.25F, 0.0F, 0.5F, 0.125F, 0.0F, 0.0F, 0.25F, 0.25F};
    return ranked_layer({2, 0, 3}, {2, 1}, mass);
}

}  // namespace

TEST_CASE("the mass kept is that of the kept prefix and of the window, averaged over heads") {
    auto layer = two_heads();

    // 0.75 of 0.875 and the window's 0.125; 0.25 of 0.5 and the window's 0.5.
    CHECK(layer.mass_kept() == (0.875F + 0.75F) / 2);

    CHECK(layer.trim(Lengths{1, 0}));
    CHECK(layer.mass_kept() == (0.625F + 0.5F) / 2);
}

TEST_CASE("a trim keeps the best, and says whether it dropped anything") {
    auto layer = two_heads();

    CHECK_FALSE(layer.trim(Lengths{2, 1}));
    CHECK(layer.trim(Lengths{1, 1}));
    CHECK(ids_of(layer.heads[0]) == Ids{2});
    CHECK(ids_of(layer.heads[1]) == Ids{3});
    CHECK(layer.lengths(10) == Lengths{11, 11});
}

TEST_CASE("what was cut may grow again, as far as it was ranked") {
    auto layer = two_heads();

    layer.trim(Lengths{0, 1});
    layer.resize(Lengths{2, 0});
    CHECK(ids_of(layer.heads[0]) == Ids{2, 0});
    CHECK(ids_of(layer.heads[1]).empty());
    CHECK(layer.mass_kept() == (0.875F + 0.5F) / 2);
}

TEST_CASE("a layer may be a part of what was ranked") {
    auto const whole = two_heads();
    auto const part = best_of(whole.ranks, Lengths{1, 1});

    CHECK(ids_of(part.heads[0]) == Ids{2});
    CHECK(ids_of(part.heads[1]) == Ids{3});
    CHECK(part.mass_kept() == (0.625F + 0.75F) / 2);
}

TEST_CASE("mass that nobody measured is unknown, even where nothing but the window is kept") {
    CHECK_FALSE(ranked_layer({1}, {1}, {}).mass_kept());
    CHECK_FALSE(ranked_layer({}, {0}, {}).mass_kept());
}

TEST_CASE("staged rows are the window, then the prefix in rank order") {
    CHECK(staged_rows(two_heads(), 4, 2) == Ids{4, 5, 2, 0, 4, 5, 3});
}

TEST_CASE("packed rows are position-sorted, the window last, and found in the staged segment") {
    auto const rows = packed_rows(two_heads(), 4, 2);

    CHECK(rows.positions == Ids{0, 2, 4, 5, 3, 4, 5});
    // Slots 0 and 1 are the window; slot 2 is the best of the prefix.
    CHECK(rows.slots == Ids{3, 2, 0, 1, 2, 0, 1});
}

TEST_CASE("savings count every kept row, and for a block table the longest head's blocks") {
    // f16: rows of 16 bytes; 2 layers of 2 heads.
    Geometry const geometry{
        .layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 8, .dtype = Dtype::F16};
    Lengths const lengths{10, 20, 33, 5};

    CHECK(kept_bytes(geometry, lengths) == 68 * 2 * 16);
    // 100 tokens are 7 blocks; 33 need 3; 4 blocks of 16 tokens of 64 bytes in 2 layers come back.
    CHECK(block_table_bytes(geometry, 100, lengths) == 4 * 16 * 64 * 2);
    CHECK(block_table_bytes(geometry, 33, lengths) == 0);
    CHECK(block_table_bytes(geometry, 48, lengths) == 0);
    CHECK(block_table_bytes(geometry, 49, lengths) == 16 * 64 * 2);
    CHECK(block_table_bytes(geometry, 20, lengths) == 0);
}
