#include "cli/saved/reference/attention_ref.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;
using namespace dkv::reference;

namespace {

std::vector<float> eighths(nlohmann::json const& list) {
    std::vector<float> values;
    for (auto const& entry : list)
        values.push_back(entry.get<float>() / 8);
    return values;
}

}  // namespace

TEST_CASE("numbers are rounded to the dtype's nearest, ties to even") {
    CHECK(rounded_to(Dtype::F32, 0.1f) == 0.1f);
    CHECK(rounded_to(Dtype::Bf16, 1 + 0x1p-8f) == 1);            // A tie.
    CHECK(rounded_to(Dtype::Bf16, 1 + 0x3p-8f) == 1 + 0x1p-6f);  // Likewise.
    CHECK(rounded_to(Dtype::Bf16, 1 + 0x1.01p-8f) == 1 + 0x1p-7f);
    CHECK(rounded_to(Dtype::Bf16, 3.4e38f) == HUGE_VALF);
    CHECK(std::isnan(rounded_to(Dtype::Bf16, std::nanf(""))));
    CHECK(rounded_to(Dtype::F16, 1 + 0x1p-11f) == 1);
    CHECK(rounded_to(Dtype::F16, -(1 + 0x3p-11f)) == -(1 + 0x1p-9f));
    CHECK(rounded_to(Dtype::F16, 65519) == 65504);
    CHECK(rounded_to(Dtype::F16, 65520) == HUGE_VALF);
    CHECK(rounded_to(Dtype::F16, 0x1p-24f) == 0x1p-24f);
    CHECK(rounded_to(Dtype::F16, 0x1p-25f) == 0);
    CHECK(rounded_to(Dtype::F16, -0x1.8p-25f) == -0x1p-24f);
}

TEST_CASE("rows are added in runs of sixteen, as torch adds them") {
    // 2^24 swallows a 1, but not the 15 of a run.
    RowSum sum(33, 1);
    for (int row = 0; row < 33; ++row)
        sum.add(std::vector{row == 0 ? 0x1p24f : 1.f});
    CHECK(sum.total() == std::vector{1 + (0x1p24f + 16)});
}

TEST_CASE("attention is rounded where torch rounds it") {
    std::ifstream file(DKV_TEST_DATA "/attention_ref.json");
    auto const golden = nlohmann::json::parse(file);
    for (auto const& one : golden.at("cases")) {
        auto const dtype = one.at("dtype").get<std::string>();
        CAPTURE(dtype);
        auto const queries = eighths(one.at("queries_x8"));
        auto const keys = eighths(one.at("keys_x8"));
        auto const kv_heads = one.at("kv_heads").get<std::uint32_t>();
        auto const tokens = one.at("tokens").get<std::uint32_t>();
        auto const window = one.at("window").get<std::uint32_t>();
        auto const sums =
            attention_sums({.queries = queries,
                            .keys = keys,
                            .q_heads = kv_heads * one.at("group").get<std::uint32_t>(),
                            .kv_heads = kv_heads,
                            .query_rows = window,
                            .tokens = tokens,
                            .head_dim = one.at("head_dim").get<std::uint32_t>(),
                            .dtype = dtype == "bf16"  ? Dtype::Bf16
                                     : dtype == "f16" ? Dtype::F16
                                                      : Dtype::F32},
                           window, tokens - window);
        REQUIRE(sums);
        auto const want = one.at("sums").get<std::vector<float>>();
        REQUIRE(sums.value().size() == want.size());
        for (std::size_t i = 0; i < want.size(); ++i) {
            // To the bit, but for the softmax in f32.
            if (dtype == "f32")
                CHECK(sums.value()[i] == doctest::Approx(want[i]).epsilon(1e-6));
            else
                CHECK(sums.value()[i] == want[i]);
        }
    }
}

TEST_CASE("a sink is one more column of the softmax, in the model's dtype") {
    // One query and logits of 0: three tokens, and e^sink = 2 and 5 for two query heads.
    std::vector<float> const queries(2), keys{1, 2, 3};
    std::vector<float> sinks{std::log(2.F), std::log(5.F)};
    AttentionInput input{.queries = queries,
                         .keys = keys,
                         .q_heads = 2,
                         .kv_heads = 1,
                         .query_rows = 1,
                         .tokens = 3,
                         .head_dim = 1,
                         .dtype = Dtype::F32,
                         .sink_logits = sinks};
    auto sums = attention_sums(input, 1, 2);
    REQUIRE(sums);
    REQUIRE(sums.value().size() == 4);
    for (std::size_t i = 0; i < 4; ++i)
        CHECK(sums.value()[i] == doctest::Approx(i < 2 ? 1.0 / 5 : 1.0 / 8));

    input.dtype = Dtype::Bf16;
    sums = attention_sums(input, 1, 2);
    REQUIRE(sums);
    float const sink = rounded_to(Dtype::Bf16, std::log(2.F));
    CHECK(sums.value()[0] == rounded_to(Dtype::Bf16, 1 / (3 + std::exp(sink))));

    sinks.pop_back();
    input.sink_logits = sinks;
    CHECK(attention_sums(input, 1, 2).error().message ==
          "sink_logits has 1 values, not 2: one per query head");
}

TEST_CASE("attention_sums refuses sizes that disagree") {
    std::vector<float> const queries(12);
    std::vector<float> const keys(10);
    AttentionInput const good{.queries = queries,
                              .keys = keys,
                              .q_heads = 2,
                              .kv_heads = 1,
                              .query_rows = 3,
                              .tokens = 5,
                              .head_dim = 2,
                              .dtype = Dtype::F32};
    CHECK(attention_sums(good, 3, 5));
    auto const refusal = [&](auto change, std::uint32_t rows = 3, std::uint32_t columns = 5) {
        AttentionInput input = good;
        change(input);
        auto const sums = attention_sums(input, rows, columns);
        return sums ? std::string() : sums.error().message;
    };
    auto const nothing = [](AttentionInput&) {};
    CHECK(refusal([](auto& input) { input.kv_heads = 3; }) ==
          "q_heads is 2, no multiple of kv_heads 3");
    CHECK(refusal([](auto& input) { input.head_dim = 0; }) == "head_dim is 0");
    CHECK(refusal([](auto& input) { input.query_rows = 4; }) ==
          "12 numbers are not 2 query heads of 4 rows");
    CHECK(refusal([](auto& input) { input.tokens = 4; }) ==
          "10 numbers are not 1 KV heads of 4 tokens");
    CHECK(refusal(nothing, 4) == "the queries of 4 rows are wanted; there are 3, of 5 tokens");
    CHECK(refusal(nothing, 0) == "the queries of 0 rows are wanted; there are 3, of 5 tokens");
    CHECK(refusal(nothing, 3, 6) == "columns is 6 of 5 tokens");
}
