#include "protocol/container/quantised_rows.h"

#include <algorithm>
#include <cmath>
#include <random>

#include <doctest/doctest.h>

#include "protocol/base/elements.h"
#include "tests/support/results.h"

using namespace dkv;

namespace {

std::vector<std::byte> as(std::vector<float> const& numbers, Dtype dtype) {
    std::vector<std::byte> bytes(numbers.size() * bytes_of(dtype));
    for (std::size_t i = 0; i < numbers.size(); ++i)
        store_f32(bytes.data() + i * bytes_of(dtype), dtype, numbers[i]);
    return bytes;
}

/// Root of the mean square of what is lost, over that of the numbers.
double lost(RowBits bits, Dtype dtype, std::vector<float> const& numbers, std::uint32_t head_dim) {
    auto const rows = quantised_rows(bits, head_dim).value();
    std::vector<std::byte> packed;
    REQUIRE(rows.pack(as(numbers, dtype), dtype, packed));
    CHECK(packed.size() == numbers.size() / head_dim * rows.row_bytes());
    std::vector<std::byte> rest;
    if (rows.refined) REQUIRE(rows.pack_rest(as(numbers, dtype), dtype, rest));
    CHECK((rest.empty() || rest.size() == packed.size()));
    std::vector<std::byte> back(numbers.size() * bytes_of(dtype));
    REQUIRE(rows.unpack(packed, rest, dtype, back));
    double error = 0;
    double size = 0;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        double const off =
            double{load_f32(back.data() + i * bytes_of(dtype), dtype)} - double{numbers[i]};
        error += off * off;
        size += double{numbers[i]} * double{numbers[i]};
    }
    return std::sqrt(error / size);
}

}  // namespace

TEST_CASE("rows of 8, 4 and twice 4 bits come back near what they were, large dims or not") {
    for (std::uint32_t const head_dim : {32U, 64U, 96U, 256U}) {
        std::mt19937 random(head_dim);
        std::normal_distribution<float> normal;
        std::vector<float> numbers(std::size_t{40} * head_dim);
        for (std::size_t i = 0; i < numbers.size(); ++i)
            numbers[i] = normal(random) + (i % head_dim == 7 ? 30.0F : 0.0F);
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            CAPTURE(head_dim);
            CHECK(lost(RowBits::Eight, dtype, numbers, head_dim) < 0.01);
            CHECK(lost(RowBits::Four, dtype, numbers, head_dim) < 0.12);
            CHECK(lost(RowBits::Four, dtype, numbers, head_dim) >
                  2 * lost(RowBits::Eight, dtype, numbers, head_dim));
            CHECK(lost(RowBits::Mixed, dtype, numbers, head_dim) < 0.012);
        }
    }
}

TEST_CASE("a row's bytes count its scales") {
    CHECK(quantised_rows(RowBits::Eight, 64).value().row_bytes() == 68);
    CHECK(quantised_rows(RowBits::Four, 64).value().row_bytes() == 36);
    CHECK(quantised_rows(RowBits::Four, 96).value().rotation == 32);
    CHECK(quantised_rows(RowBits::Eight, 128).value().rotation == 128);
}

TEST_CASE("rows that cannot be of so few bits are refused by name") {
    auto const refused = [](auto const& result) { return result.error().message; };
    CHECK(refused(quantised_rows(RowBits::Four, 80)) ==
          "a head has 80 dims, and rows of 4 bits are blocks of 32: leave --bits out");
    auto const rows = quantised_rows(RowBits::Eight, 32).value();
    std::vector<std::byte> packed;
    for (float const wrong : {INFINITY, NAN, 1e30F})
        CHECK(
            refused(rows.pack(as(std::vector<float>(32, wrong), Dtype::F32), Dtype::F32, packed)) ==
            "a row has an element that is not finite, or too large for q8_0: leave --bits out");
}

TEST_CASE("what a file says of its rows is checked") {
    auto const rows = quantised_rows("q4_0", 64, 72);
    REQUIRE(rows);
    CHECK(rows.value().head_dim == 128);
    CHECK_FALSE(rows.value().refined);
    CHECK(quantised_rows("q4_0+q4_0", 64, 72).value().refined);
    auto const refused = [](char const* type, std::uint32_t rotation, std::uint64_t bytes) {
        auto const wrong = quantised_rows(type, rotation, bytes);
        REQUIRE_FALSE(wrong);
        return wrong.error().message;
    };
    CHECK(refused("q5_0", 64, 72) ==
          "rows are \"q5_0\", and this dkv reads q8_0, q4_0 and q4_0+q4_0");
    CHECK(refused("q8_0", 64, 72) == "rows of 72 bytes are not blocks of q8_0, of 34 bytes");
    CHECK(refused("q4_0", 0, 72) == "rows of 128 dims are rotated by 0");
    CHECK(refused("q4_0", 48, 72) == "rows of 128 dims are rotated by 48");
    CHECK(refused("q4_0", 256, 72) == "rows of 128 dims are rotated by 256");
    CHECK(refused("q4_0", 64, std::uint64_t{18} << 40U) ==
          "rows of 19791209299968 bytes are not blocks of q4_0, of 18 bytes");
}

TEST_CASE("a scale that is not finite is seen when rows are read") {
    auto const rows = quantised_rows(RowBits::Eight, 32).value();
    std::vector<std::byte> packed;
    REQUIRE(rows.pack(as(std::vector<float>(32, 1), Dtype::F32), Dtype::F32, packed));
    std::vector<std::byte> back(32 * sizeof(float));
    CHECK(rows.unpack(packed, {}, Dtype::F32, back));

    packed[1] = std::byte{0x7c};  // An infinity.

    CHECK_FALSE(rows.unpack(packed, {}, Dtype::F32, back));
}
