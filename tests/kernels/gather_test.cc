#include "kernels/ops/gather.h"

#include <array>
#include <limits>
#include <numeric>
#include <random>

#include "tests/support/backends.h"
#include "tests/support/rows.h"

using namespace dkv;
using test::Layout;
using test::Rows;

namespace {

/// Three heads of four tokens of two elements; element = 100 * head + 10 * token + dim.
Rows numbered(Dtype dtype, Layout layout) {
    Rows rows(dtype, 3, 4, 2, layout);
    rows.fill([](std::uint32_t head, std::uint32_t token, std::uint32_t dim) {
        return static_cast<float>(100 * head + 10 * token + dim);
    });
    return rows;
}

struct Case {
    Rows rows = numbered(Dtype::F32, Layout::HeadMajor);
    std::vector<std::int32_t> ids{2, 3, 0, 1};
    std::vector<std::uint32_t> lengths{2, 0, 2};
    std::vector<std::byte> out = std::vector<std::byte>(32);
    std::vector<std::uint64_t> out_offsets{0, 16, 16};

    GatherArgs args() { return {rows.view, ids, lengths, out, out_offsets}; }
    std::string refusal() {
        auto const result = make_cpu_backend(1)->gather(args());
        return result ? "" : result.error().message;
    }
};

}  // namespace

TEST_CASE("gather copies each head's rows, in their order, to where they belong") {
    test::for_each_backend([](Backend& backend) {
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            for (Layout const layout :
                 {Layout::HeadMajor, Layout::TokenMajor, Layout::DimMajor, Layout::Odd}) {
                CAPTURE(name_of(dtype));
                CAPTURE(static_cast<int>(layout));
                Rows const rows = numbered(dtype, layout);
                std::array<std::int32_t, 6> const ids{3, 0, 1, 2, 3, 1};
                std::array<std::uint32_t, 3> const lengths{1, 4, 1};
                std::uint64_t const row = rows.view.row_bytes();
                std::array<std::uint64_t, 3> const offsets{5 * row, 0, 4 * row};
                std::vector<std::byte> out(6 * row);

                REQUIRE(backend.gather({rows.view, ids, lengths, out, offsets}));

                std::vector<float> values;
                for (std::size_t i = 0; i < 12; ++i)
                    values.push_back(test::load(out.data() + i * bytes_of(dtype), dtype));
                CHECK(values ==
                      std::vector<float>{100, 101, 110, 111, 120, 121, 130, 131, 210, 211, 30, 31});
            }
        }
    });
}

TEST_CASE("gather copies any number of rows, and nothing beside them") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    Rows rows(Dtype::F16, 2, 1000, 80);
    rows.fill_normal(random);
    test::for_each_backend([&](Backend& backend) {
        std::vector<std::int32_t> ids(1700);
        for (auto& id : ids)
            id = static_cast<std::int32_t>(random() % 1000);
        std::iota(ids.begin() + 300, ids.begin() + 700, 50);  // Runs of neighbours.
        std::array<std::uint32_t, 2> const lengths{905, 795};
        std::array<std::uint64_t, 2> const offsets{1, 905 * 160 + 3};
        std::vector<std::byte> out(1700 * 160 + 4, std::byte{0xee});

        REQUIRE(backend.gather({rows.view, ids, lengths, out, offsets}));

        std::vector<std::byte> want(out.size(), std::byte{0xee});
        for (std::uint32_t i = 0; i < 1700; ++i) {
            std::uint32_t const head = i < 905 ? 0 : 1;
            std::memcpy(want.data() + offsets[head] + (i - 905u * head) * std::size_t{160},
                        rows.view.row(head, static_cast<std::uint32_t>(ids[i])), 160);
        }
        CHECK(out == want);
    });
}

TEST_CASE("gather of nothing writes nothing") {
    test::for_each_backend([](Backend& backend) {
        Rows const rows = numbered(Dtype::F32, Layout::HeadMajor);
        std::array<std::uint32_t, 3> const lengths{};
        std::array<std::uint64_t, 3> const offsets{};
        REQUIRE(backend.gather({rows.view, {}, lengths, {}, offsets}));
    });
}

TEST_CASE("gather refuses a row outside the source, and writes nothing") {
    test::for_each_backend([](Backend& backend) {
        for (std::int32_t const id : {4, -1, std::numeric_limits<std::int32_t>::min()}) {
            Case c;
            c.ids[3] = id;
            c.out.assign(32, std::byte{0xee});
            auto const refused = backend.gather(c.args());
            REQUIRE_FALSE(refused);
            CHECK(refused.error().code == ErrorCode::InvalidArgument);
            CHECK(refused.error().message ==
                  "id " + std::to_string(id) + " of head 2 is not in [0, 4)");
            CHECK(c.out == std::vector<std::byte>(32, std::byte{0xee}));
        }
    });
}

TEST_CASE("gather refuses spans that disagree") {
    Case c;
    CHECK(c.refusal().empty());
    c.ids.push_back(0);
    CHECK(c.refusal() == "ids has 5 elements, not [4]");

    c = Case();
    c.lengths.pop_back();
    CHECK(c.refusal() == "lengths has 2 elements, not [3]");

    c = Case();
    c.out_offsets.push_back(0);
    CHECK(c.refusal() == "out_offsets has 4 elements, not [3]");
}

TEST_CASE("gather refuses rows that do not fit, overlap, or would overwrite the source") {
    Case c;
    c.out_offsets[2] = 17;
    CHECK(c.refusal() ==
          "head 2's 2 rows of 8 bytes at offset 17 do not fit in the 32 bytes of out");

    c.out_offsets[2] = std::numeric_limits<std::uint64_t>::max() - 7;
    CHECK(c.refusal().ends_with("do not fit in the 32 bytes of out"));

    c = Case();
    c.out_offsets[2] = 15;
    CHECK(c.refusal() == "rows of heads 0 and 2 overlap in out");

    c = Case();
    auto args = c.args();
    args.out = c.rows.bytes;
    auto const result = check(args);
    REQUIRE_FALSE(result);
    CHECK(result.error().message ==
          "out overlaps source: rows of head 0 would be written over head 0");
}

TEST_CASE("gather may write between the heads of its source") {
    Case c;
    std::vector<float> arena(48);
    c.rows.view.data = reinterpret_cast<std::byte*>(arena.data());
    c.rows.view.head_stride = 16;  // Tokens take 8 of them.
    c.rows.fill([](auto head, auto token, auto dim) {
        return static_cast<float>(100 * head + 10 * token + dim);
    });
    auto args = c.args();
    args.out = {c.rows.view.data, arena.size() * sizeof(float)};
    c.out_offsets = {32, 0, 96};
    REQUIRE(make_cpu_backend(1)->gather(args));
    CHECK(std::vector(arena.begin() + 8, arena.begin() + 12) == std::vector<float>{20, 21, 30, 31});
    CHECK(std::vector(arena.begin() + 24, arena.begin() + 28) ==
          std::vector<float>{200, 201, 210, 211});
}
