#include "kernels/tensor_view.h"

#include <limits>

#include "tests/support/results.h"
#include "tests/support/rows.h"

using namespace dkv;

namespace {

constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();

}  // namespace

TEST_CASE("the extent of a view ends with its last element, not with its last stride") {
    test::Rows const rows(Dtype::F16, 2, 3, 4);
    RowsView view = rows.view;
    CHECK(extent_bytes(view).value() == 2 * 3 * 4 * 2);

    view.head_stride = 100;
    CHECK(extent_bytes(view).value() == (100 + 2 * 4 + 3 + 1) * 2);

    view.heads = 0;
    CHECK(extent_bytes(view).value() == 0);
}

TEST_CASE("strides that reach beyond 64 bits are refused, however they overflow") {
    std::byte byte{};
    RowsView view = dense_rows(&byte, Dtype::F32, 2, 2, 2);
    view.head_stride = kMost;
    auto const sum = extent_bytes(view);
    REQUIRE_FALSE(sum);
    CHECK(sum.error().message ==
          "strides [18446744073709551615, 2, 1] of shape [2, 2, 2] reach beyond 64 bits");

    view.head_stride = kMost / 4;
    CHECK_FALSE(extent_bytes(view));
    view = dense_rows(&byte, Dtype::F32, 2, 3, 2);
    view.token_stride = kMost - 1;
    CHECK_FALSE(extent_bytes(view));

    view = dense_rows(&byte, Dtype::F32, 2, 2, 2);
    view.head_stride = kMost / 4 - 8;  // Representable, but data + extent is no address.
    auto const end = check_memory("keys", view);
    REQUIRE_FALSE(end);
    CHECK(end.error().message == "keys ends beyond the address space");
}

TEST_CASE("a wrong shape is refused with both shapes") {
    auto const view = dense_rows(nullptr, Dtype::F32, 3, 100, 64);
    REQUIRE(check_shape("keys", view, 3, 100, 64));
    auto const result = check_shape("keys", view, 3, 101, 64);
    REQUIRE_FALSE(result);
    CHECK(result.error().code == ErrorCode::InvalidArgument);
    CHECK(result.error().message == "keys is [3, 100, 64], not [3, 101, 64]");
}

TEST_CASE("a product of extents that overflows equals no number of elements") {
    CHECK_FALSE(check_elements("scores", 0, {1ull << 33, 1ull << 33}));
    auto const result = check_elements("scores", 10, {3, 4});
    REQUIRE_FALSE(result);
    CHECK(result.error().message == "scores has 10 elements, not [3, 4]");
}

TEST_CASE("a view without data and a dtype from elsewhere are refused") {
    auto const nothing = check_memory("keys", dense_rows(nullptr, Dtype::F32, 1, 1, 1));
    REQUIRE_FALSE(nothing);
    CHECK(nothing.error().message == "keys has no data");
    REQUIRE(check_memory("keys", dense_rows(nullptr, Dtype::F32, 1, 0, 1)));

    std::byte byte{};
    auto const unknown = check_memory("keys", dense_rows(&byte, static_cast<Dtype>(9), 1, 1, 1));
    REQUIRE_FALSE(unknown);
    CHECK(unknown.error().message == "keys has unknown dtype 9");
}

TEST_CASE("the tests' own f16 is IEEE's") {
    CHECK(test::f16_bits(1.0f) == 0x3c00);
    CHECK(test::f16_bits(-2.0f) == 0xc000);
    CHECK(test::f16_bits(65504.0f) == 0x7bff);
    CHECK(test::f16_bits(1e6f) == 0x7c00);
    CHECK(test::f16_bits(0x1p-24f) == 1);
    for (std::uint32_t bits = 0; bits < 0x7c00; ++bits)
        REQUIRE(test::f16_bits(test::f16_value(static_cast<std::uint16_t>(bits))) == bits);
}
