#include "cli/saved/formats/turn_keys.h"

#include <cmath>
#include <cstring>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;

namespace {

/// By how much each pair of a row of 1 and 0 has turned, in radians per position.
std::vector<double> frequencies(RopeFacts const& rope, std::uint32_t head_dim) {
    auto const turner = KeyTurner::create(rope, head_dim, Dtype::F32);
    REQUIRE(turner);
    std::vector<float> row(head_dim, 0);
    std::fill_n(row.begin(), head_dim / 2, 1.0f);
    turner.value().turn(std::as_writable_bytes(std::span(row)), 1);
    std::vector<double> angles;
    for (std::size_t pair = 0; pair < head_dim / 2; ++pair)
        angles.push_back(std::atan2(static_cast<double>(row[head_dim / 2 + pair]),
                                    static_cast<double>(row[pair])));
    return angles;
}

std::string refusal(std::string const& scaling) {
    auto const turner = KeyTurner::create({.theta = 10000, .scaling = scaling}, 8, Dtype::F32);
    REQUIRE_FALSE(turner);
    CHECK(turner.error().code == ErrorCode::Unsupported);
    return turner.error().message;
}

}  // namespace

TEST_CASE("keys turn by theta^(-2i/d), and as far as they are told") {
    auto const plain = frequencies({.theta = 10000}, 8);
    for (std::size_t pair = 0; pair < 4; ++pair)
        CHECK(plain[pair] == doctest::Approx(std::pow(10.0, -static_cast<double>(pair))));
    CHECK(frequencies({.theta = 10000, .scaling = R"({"rope_type": "default"})"}, 8) == plain);
    auto const linear =
        frequencies({.theta = 10000, .scaling = R"({"type": "linear", "factor": 4.0})"}, 8);
    CHECK(linear[1] == doctest::Approx(0.1 / 4));
}

TEST_CASE("Llama 3.1's scaling slows what turns slowly") {
    auto const scaled = frequencies({.theta = 500000, .scaling = R"({"rope_type": "llama3",
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192})"},
                                    16);
    // transformers' ROPE_INIT_FUNCTIONS["llama3"] for head_dim 16.
    std::vector<double> const wanted{1,
                                     0.193922758,
                                     0.0376060307,
                                     0.00729266508,
                                     0.000524846022,
                                     3.42810235e-05,
                                     6.64786967e-06,
                                     1.28917316e-06};
    for (std::size_t pair = 0; pair < 8; ++pair)
        CHECK(scaled[pair] == doctest::Approx(wanted[pair]).epsilon(1e-4));
}

TEST_CASE("scalings that depend on the length, or lack a number, are refused") {
    for (char const* scaling :
         {R"({"rope_type": "yarn", "factor": 4.0})", R"({"rope_type": "linear"})",
          R"({"rope_type": "linear", "factor": -1})", R"({"rope_type": "llama3", "factor": 8.0})",
          R"({"factor": 8.0})", R"([1])", "yarn"})
        CHECK(refusal(scaling).starts_with(
            "the keys' positions must change, and their rope is scaled: \""));
}
