#include "protocol/base/kv_layout.h"

#include <array>

#include <doctest/doctest.h>

using namespace dkv;

namespace {

constexpr Geometry kGeometry{3, 4, 2, 64, Dtype::F32};  // rows of 256 bytes

}  // namespace

TEST_CASE("staging: every head's segment lies on pages of its own") {
    StagingLayout const layout{kGeometry, 17};  // 17 rows = 4352 bytes

    CHECK(layout.segment_bytes() == 8192);
    CHECK(layout.slot_bytes() == 4 * 8192);
    CHECK(layout.region_bytes() == 3 * 4 * 8192);
    CHECK(layout.keys_offset(0, 0) == 0);
    CHECK(layout.keys_offset(0, 1) == 8192);
    CHECK(layout.values_offset(0, 0) == 2 * 8192);
    CHECK(layout.keys_offset(2, 1) == 9 * 8192);
}

TEST_CASE("destination: heads of unequal length lie one after another, without padding between") {
    std::array<std::uint32_t, 2> const lengths{5, 2};

    auto const layer = packed_layer(kGeometry, lengths, 100);

    CHECK(layer.head_rows == std::vector<std::uint32_t>{0, 5, 7});
    CHECK(layer.keys_offset == 128);
    CHECK(layer.values_offset == 128 + 7 * 256);
    CHECK(layer.positions_offset == 128 + 14 * 256);
    CHECK(layer.end_offset == 128 + 14 * 256 + 28);
}

TEST_CASE("destination: the bound holds however the rows fall") {
    for (std::uint32_t first = 0; first <= 12; ++first) {
        CAPTURE(first);
        std::uint64_t offset = 0;
        std::uint64_t rows = 0;
        for (std::uint32_t layer = 0; layer < kGeometry.layers; ++layer) {
            std::array<std::uint32_t, 2> const lengths{first, 12 - first + layer};
            rows += 12 + layer;
            offset = packed_layer(kGeometry, lengths, offset).end_offset;
        }

        CHECK(offset <= packed_bytes_max(kGeometry, rows));
    }
}

TEST_CASE("destination: a layer that keeps nothing takes no row") {
    std::array<std::uint32_t, 2> const lengths{0, 0};

    auto const layer = packed_layer(kGeometry, lengths, 64);

    CHECK(layer.end_offset == 64);
}
