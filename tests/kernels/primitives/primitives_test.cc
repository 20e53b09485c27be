// Each primitive against the matrix product or the plain copy that it stands for.
#include <cmath>
#include <cstdlib>
#include <random>

#include <doctest/doctest.h>

#include "tests/kernels/primitives/warp_kernels.h"
#include "tests/support/results.h"
#include "tests/support/rows.h"

using namespace dkv;

namespace {

/// Whether there is a device; no device is no failure unless DKV_REQUIRE_CUDA says so.
bool have_device() {
    auto const answer = test::powers({0.0F});
    if (answer) return true;
    bool const absent = answer.error().code == ErrorCode::Unsupported ||
                        answer.error().code == ErrorCode::Unavailable;
    REQUIRE_MESSAGE((absent && std::getenv("DKV_REQUIRE_CUDA") == nullptr), answer.error().message);
    return false;
}

test::Bits bits_of(Dtype dtype, std::vector<float> const& values) {
    test::Bits bits(values.size());
    for (std::size_t i = 0; i < values.size(); ++i)
        test::store(reinterpret_cast<std::byte*>(&bits[i]), dtype, values[i]);
    return bits;
}

/// Small whole numbers, which every dtype holds and whose sums are exact.
std::vector<float> whole_numbers(std::size_t count, std::mt19937& random) {
    std::vector<float> values(count);
    for (float& value : values)
        value = static_cast<float>(static_cast<int>(random() % 17) - 8);
    return values;
}

std::vector<float> transposed(std::vector<float> const& matrix, std::size_t columns) {
    std::vector<float> out(matrix.size());
    std::size_t const rows = matrix.size() / columns;
    for (std::size_t row = 0; row < rows; ++row)
        for (std::size_t column = 0; column < columns; ++column)
            out[column * rows + row] = matrix[row * columns + column];
    return out;
}

std::vector<float> reference(std::vector<float> const& a,
                             std::vector<float> const& b,
                             std::vector<float> c) {
    for (std::size_t row = 0; row < 16; ++row)
        for (std::size_t column = 0; column < 8; ++column)
            for (std::size_t k = 0; k < 16; ++k)
                c[row * 8 + column] += a[row * 16 + k] * b[k * 8 + column];
    return c;
}

}  // namespace

TEST_CASE("a warp's product is the matrices' product, of f16 and of bf16") {
    if (!have_device()) return;
    std::mt19937 random(1);
    for (Dtype const dtype : {Dtype::F16, Dtype::Bf16}) {
        for (int round = 0; round < 20; ++round) {
            auto const a = whole_numbers(16 * 16, random);
            auto const b = whole_numbers(16 * 8, random);
            auto const c = whole_numbers(16 * 8, random);
            auto const got = test::product(dtype, bits_of(dtype, a), bits_of(dtype, b), c);
            REQUIRE(got);
            CHECK(got.value() == reference(a, b, c));
        }
    }
}

TEST_CASE("each element of a and b is where its row and its column say") {
    if (!have_device()) return;
    std::vector<float> const none(16 * 8);
    for (std::size_t at = 0; at < 16 * 16; ++at) {  // One element, and a row of different ones.
        std::size_t const k = at % 16;
        std::vector<float> a(16 * 16);
        std::vector<float> b(16 * 8);
        a[at] = 1;
        for (std::size_t column = 0; column < 8; ++column)
            b[k * 8 + column] = static_cast<float>(column + 1);
        auto const got =
            test::product(Dtype::F16, bits_of(Dtype::F16, a), bits_of(Dtype::F16, b), none);
        REQUIRE(got);
        CHECK(got.value() == reference(a, b, none));
    }
}

TEST_CASE("rows in shared memory are both of a product's operands") {
    if (!have_device()) return;
    std::mt19937 random(2);
    for (Dtype const dtype : {Dtype::F16, Dtype::Bf16}) {
        auto const a = whole_numbers(16 * 16, random);
        auto const b = whole_numbers(16 * 8, random);
        auto const got =
            test::product_of_rows(dtype, bits_of(dtype, a), bits_of(dtype, transposed(b, 8)));
        REQUIRE(got);
        CHECK(got.value() == reference(a, b, std::vector<float>(16 * 8)));
    }
}

TEST_CASE("fractions, subnormal numbers, infinities and NaN are multiplied as what they are") {
    if (!have_device()) return;
    for (Dtype const dtype : {Dtype::F16, Dtype::Bf16}) {
        std::vector<float> a(16 * 16);
        std::vector<float> b(16 * 8);
        a[0] = 0.375F;  // Row 0.
        a[16] = dtype == Dtype::F16 ? 0x1p-24F : 0x1p-120F;
        a[32] = HUGE_VALF;
        a[48] = std::nanf("");
        b[0] = 8;
        auto const got =
            test::product(dtype, bits_of(dtype, a), bits_of(dtype, b), std::vector<float>(16 * 8));
        REQUIRE(got);
        CHECK(got.value()[0] == 3);
        CHECK(got.value()[8] == 8 * a[16]);
        CHECK(got.value()[16] == HUGE_VALF);
        CHECK(std::isnan(got.value()[17]));  // Infinity times 0.
        CHECK(std::isnan(got.value()[24]));
        CHECK(got.value()[32] == 0);
    }
}

TEST_CASE("load_matrices gives lane 4 g + t elements 2 t and 2 t + 1 of row g of each matrix") {
    if (!have_device()) return;
    test::Bits matrices(4 * 8 * 8);
    for (std::size_t i = 0; i < matrices.size(); ++i)
        matrices[i] = static_cast<std::uint16_t>(1000 + i);
    auto const got = test::loaded(matrices);
    REQUIRE(got);
    for (std::size_t lane = 0; lane < 32; ++lane)
        for (std::size_t matrix = 0; matrix < 4; ++matrix)
            for (std::size_t i = 0; i < 2; ++i)
                CHECK(got.value()[lane * 8 + matrix * 2 + i] ==
                      matrices[matrix * 64 + lane / 4 * 8 + lane % 4 * 2 + i]);
}

TEST_CASE("copies are there when their group was waited for, and zeros where nothing is present") {
    if (!have_device()) return;
    std::vector<std::uint32_t> words(64 * 4);
    std::vector<std::uint32_t> present(64);
    for (std::size_t i = 0; i < words.size(); ++i)
        words[i] = static_cast<std::uint32_t>(i + 1);
    for (std::size_t piece = 0; piece < 64; ++piece)
        present[piece] = piece % 3 != 0;
    auto const got = test::copied(words, present);
    REQUIRE(got);
    for (std::size_t i = 0; i < words.size(); ++i) {
        std::uint32_t const want = present[i / 4] != 0 ? words[i] : 0;
        CHECK(got.value().both[i] == want);
        if (i / 4 % 2 == 0) CHECK(got.value().first[i / 8 * 4 + i % 4] == want);
    }
}

TEST_CASE("powers of two are right to 2 units in the last place") {
    if (!have_device()) return;
    std::vector<float> exponents;
    for (int i = 0; i < 500; ++i)
        exponents.push_back(static_cast<float>(i) * -0.251F);
    for (float const exponent : {0.5F, 3.F, 100.25F, -3.4e38F, -HUGE_VALF})
        exponents.push_back(exponent);
    auto const got = test::powers(exponents);
    REQUIRE(got);
    for (std::size_t i = 0; i < exponents.size(); ++i)
        CHECK(std::abs(double{got.value()[i]} - std::exp2(double{exponents[i]})) <=
              std::exp2(double{exponents[i]}) * 0x1p-22 + 0x1p-126);
}
