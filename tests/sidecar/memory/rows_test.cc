#include "sidecar/memory/rows.h"

#include <algorithm>

#include <doctest/doctest.h>

#include "sidecar/memory/region_table.h"
#include "tests/support/engine_memory.h"
#include "tests/support/results.h"

namespace dkv {
namespace {

using test::EngineMemory;

constexpr std::uint64_t kMax = ~std::uint64_t{0};

struct Lent {
    EngineMemory memory{4096};
    RegionLease region =
        attach(MemfdSource{test::own_pid(), memory.fd(), memory.inode()}, 4096, false).value();
};

/// 2 heads of 4 tokens of 8 numbers: 256 bytes.
RowsAt small_rows() {
    return {.region = 1,
            .offset = 0,
            .dtype = Dtype::F32,
            .heads = 2,
            .tokens = 4,
            .head_dim = 8,
            .head_stride = 32,
            .token_stride = 8,
            .dim_stride = 1};
}

std::string refusal(RowsAt const& at, MappedRegion const& region) {
    auto const view = rows("keys", at, region);
    REQUIRE(!view);
    CHECK(view.error().code == ErrorCode::InvalidArgument);
    return view.error().message;
}

TEST_CASE("rows are a view into the region, up to its last byte") {
    Lent lent;
    auto at = small_rows();
    at.offset = 4096 - 256;

    auto const view = rows("keys", at, *lent.region);

    REQUIRE(view);
    CHECK(view.value().data == lent.region->bytes().data() + at.offset);
    CHECK(view.value().row(1, 3) == lent.region->bytes().data() + 4096 - 32);
}

TEST_CASE("rows past the region are refused, naming both ends") {
    Lent lent;
    auto at = small_rows();
    at.offset = 4096 - 252;
    CHECK(refusal(at, *lent.region) == "keys end at byte 4100, past the region's 4096");
    at = small_rows();
    at.head_stride = 1000;
    CHECK(refusal(at, *lent.region) == "keys end at byte 4128, past the region's 4096");
}

TEST_CASE(
    "rows of which elements overlap are refused: a small region would pass for a large cache") {
    Lent lent;
    auto at = small_rows();
    at.head_stride = 0;
    CHECK(refusal(at, *lent.region) ==
          "keys have strides [0, 8, 1], with which elements of the shape [2, 4, 8] overlap");
    at = small_rows();
    at.token_stride = 7;
    CHECK(refusal(at, *lent.region) ==
          "keys have strides [32, 7, 1], with which elements of the shape [2, 4, 8] overlap");
    at = small_rows();
    at.heads = 1;
    at.head_stride = 0;  // Of one head it says nothing.
    CHECK(rows("keys", at, *lent.region));
}

TEST_CASE("strides in any order are rows, as long as each lies outside the one before") {
    Lent lent;
    auto at = small_rows();
    at.head_stride = 8;  // [tokens, heads, head_dim]
    at.token_stride = 16;
    CHECK(rows("keys", at, *lent.region));
    at.head_stride = 32;  // [heads, head_dim, tokens]
    at.token_stride = 1;
    at.dim_stride = 4;
    CHECK(rows("keys", at, *lent.region));
}

TEST_CASE("rows that were never written are refused before they are read") {
    EngineMemory memory(1 << 20);
    auto const region =
        attach(MemfdSource{test::own_pid(), memory.fd(), memory.inode()}, 1 << 20, false).value();
    auto at = small_rows();
    at.tokens = 2048;
    at.head_stride = 2048 * 8;  // 128 KiB.
    auto const view = rows("keys", at, *region).value();
    auto const refused = check_written("keys", view, *region);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message ==
          "keys have 131072 bytes, of which the region has 0: the rest was never written");

    std::ranges::fill(memory.bytes().first(131072), std::byte{1});

    CHECK(check_written("keys", view, *region));
}

TEST_CASE("rows whose end does not fit in 64 bits are refused") {
    Lent lent;
    auto at = small_rows();
    at.offset = kMax - 3;
    CHECK(refusal(at, *lent.region) == "keys have an offset or strides that do not fit in 64 bits");
    at = small_rows();
    at.head_stride = kMax / 2;
    CHECK(refusal(at, *lent.region) == "keys have an offset or strides that do not fit in 64 bits");
    at = small_rows();
    at.token_stride = kMax;
    CHECK(refusal(at, *lent.region) == "keys have an offset or strides that do not fit in 64 bits");
    at = small_rows();
    at.dim_stride = kMax / 4;
    CHECK(refusal(at, *lent.region) == "keys have an offset or strides that do not fit in 64 bits");
}

TEST_CASE("rows between two elements, and rows of nothing, are refused") {
    Lent lent;
    auto at = small_rows();
    at.offset = 2;
    CHECK(refusal(at, *lent.region) == "keys begin at byte 2, which is not a multiple of 4");
    at = small_rows();
    at.tokens = 0;
    CHECK(refusal(at, *lent.region) == "keys have the shape [2, 0, 8], which holds nothing");
}

TEST_CASE("a region keeps its number, and its mapping while it is leased") {
    EngineMemory memory(4096);
    MemfdSource const source{test::own_pid(), memory.fd(), memory.inode()};
    RegionTable table(2);
    auto const number = table.add(source, 4096, false);
    REQUIRE(number);
    auto const lease = table.find(number.value());
    REQUIRE(lease);
    CHECK(table.mapped_bytes() == 4096);

    REQUIRE(table.remove(number.value()));

    memory.bytes()[1] = std::byte{5};
    CHECK(lease.value()->bytes()[1] == std::byte{5});
    CHECK(table.mapped_bytes() == 0);
    auto const again = table.find(number.value());
    REQUIRE(!again);
    CHECK(again.error().message == "no region 1 is registered");
}

TEST_CASE("the same bytes again get the same number, counted") {
    EngineMemory memory(4096);
    MemfdSource const source{test::own_pid(), memory.fd(), memory.inode()};
    RegionTable table(8);

    REQUIRE(table.add(source, 4096, false).value() == 1);
    CHECK(table.add(source, 4096, false).value() == 1);
    CHECK(table.add(source, 4096, true).value() == 2);
    CHECK(table.count() == 2);

    REQUIRE(table.remove(1));
    CHECK(table.find(1));
    REQUIRE(table.remove(1));
    CHECK(!table.find(1));
}

TEST_CASE("a table of regions has a limit") {
    EngineMemory first(4096);
    EngineMemory second(4096);
    RegionTable table(1);
    REQUIRE(table.add(MemfdSource{test::own_pid(), first.fd(), first.inode()}, 4096, false));

    auto const refused =
        table.add(MemfdSource{test::own_pid(), second.fd(), second.inode()}, 4096, false);

    REQUIRE(!refused);
    CHECK(refused.error().code == ErrorCode::LimitExceeded);
    CHECK(refused.error().message == "this engine has 1 regions; the limit is 1");
}

}  // namespace
}  // namespace dkv
