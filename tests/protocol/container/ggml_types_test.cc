#include "protocol/container/ggml_types.h"

#include <array>
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
