#include "protocol/container/ggml_types.h"

#include <array>
#include <cmath>
#include <string>

#include <doctest/doctest.h>

using namespace dkv;

namespace {

/// The 32 numbers of one block.
std::array<float, 32> block(std::int32_t number, std::string const& bytes) {
    auto const* const type = ggml_type(number);
    REQUIRE(type != nullptr);
    REQUIRE(type->bytes(32) == bytes.size());
    std::array<float, 32> numbers{};
    dequantise(*type, reinterpret_cast<std::byte const*>(bytes.data()), numbers);
    return numbers;
}

// f16, little-endian.
std::string const kTwo("\x00\x40", 2);
std::string const kHalf("\x00\x38", 2);

/// Sixteen bytes: the first is `first`, the others `rest`.
std::string packed(char first, char rest) {
    return std::string(1, first) + std::string(15, rest);
}

}  // namespace

TEST_CASE("q8_0 is a scale and 32 signed bytes") {
    auto const numbers =
        block(8, kTwo + std::string("\x7f\x80", 2) + std::string(29, '\0') + "\xff");

    CHECK(numbers[0] == 254);
    CHECK(numbers[1] == -256);
    CHECK(numbers[2] == 0);
    CHECK(numbers[31] == -2);
}

TEST_CASE("q4_0 is a scale and four bits around 8, low halves first") {
    auto const numbers = block(2, kTwo + packed('\xf1', '\x88'));

    CHECK(numbers[0] == -14);
    CHECK(numbers[1] == 0);
    CHECK(numbers[16] == 14);
    CHECK(numbers[31] == 0);
}

TEST_CASE("q4_1 has a least value instead of a middle") {
    auto const numbers = block(3, kTwo + kHalf + packed('\xf1', '\x00'));

    CHECK(numbers[0] == 2.5F);
    CHECK(numbers[1] == 0.5F);
    CHECK(numbers[16] == 30.5F);
}

TEST_CASE("q5_0 and q5_1 keep their fifth bits apart") {
    std::string const high("\x01\x00\x01\x80", 4);  // Of elements 0, 16 and 31.
    auto const middle = block(6, kTwo + high + packed('\xf1', '\x00'));
    auto const least = block(7, kTwo + kHalf + high + packed('\xf1', '\x00'));

    CHECK(middle[0] == 2);
    CHECK(middle[1] == -32);
    CHECK(middle[16] == 30);
    CHECK(middle[31] == 0);
    CHECK(least[0] == 34.5F);
    CHECK(least[1] == 0.5F);
    CHECK(least[16] == 62.5F);
    CHECK(least[31] == 32.5F);
}

TEST_CASE("iq4_nl looks its sixteen levels up") {
    auto const numbers = block(20, kTwo + packed('\xf0', '\x78'));

    CHECK(numbers[0] == -254);
    CHECK(numbers[1] == 2);
    CHECK(numbers[16] == 226);
    CHECK(numbers[17] == -20);
}

TEST_CASE("numbers become q8_0 and q4_0 as ggml rounds them") {
    std::array<float, 32> numbers{};
    numbers[0] = 254;
    numbers[1] = -3.2F;
    numbers[31] = 128;
    std::array<std::byte, 34> eight{};
    REQUIRE(quantise(*ggml_type(8), numbers, eight.data()));
    CHECK(std::string(reinterpret_cast<char const*>(eight.data()), 34) ==
          kTwo + std::string("\x7f\xfe", 2) + std::string(29, '\0') + "\x40");

    std::array<std::byte, 18> four{};
    numbers = {};
    numbers[0] = 16;  // The largest: it becomes -8 times a scale of -2.
    numbers[1] = -13.5F;
    numbers[16] = -1.2F;
    numbers[17] = -15;
    REQUIRE(quantise(*ggml_type(2), numbers, four.data()));
    CHECK(std::string(reinterpret_cast<char const*>(four.data()), 18) ==
          std::string("\x00\xc0", 2) + "\x90\xff" + std::string(14, '\x88'));
}

TEST_CASE("what no scale holds is not quantised") {
    std::array<std::byte, 34> out{};
    for (std::int32_t const type : {8, 2}) {
        std::array<float, 32> numbers{};
        numbers[3] = 1e-40F;  // Nothing that a scale could tell from 0.
        CHECK(quantise(*ggml_type(type), numbers, out.data()));
        std::array<float, 32> back{};
        dequantise(*ggml_type(type), out.data(), back);
        CHECK(back == std::array<float, 32>{});
        for (float const wrong : {1e8F, -INFINITY, NAN}) {
            numbers[5] = wrong;
            CHECK_FALSE(quantise(*ggml_type(type), numbers, out.data()));
        }
    }
}

TEST_CASE("types that no cache has are known by name, and not read") {
    REQUIRE(ggml_type(12) != nullptr);
    CHECK(ggml_type(12)->name == "q4_k");
    CHECK_FALSE(ggml_type(12)->is_readable());
    CHECK(ggml_type(99) == nullptr);
    CHECK(ggml_type(Dtype::Bf16).number == 30);
}

TEST_CASE("a Hadamard matrix turns runs of its order, and back") {
    std::array<float, 8> row{1, 0, 0, 0, 1, 2, 3, 4};
    turn_by_hadamard(row, 4);
    CHECK(row == std::array<float, 8>{0.5F, 0.5F, 0.5F, 0.5F, 5, -1, -2, 0});
    turn_by_hadamard(row, 4);
    CHECK(row == std::array<float, 8>{1, 0, 0, 0, 1, 2, 3, 4});
}
