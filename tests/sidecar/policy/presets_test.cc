#include "sidecar/policy/presets.h"

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;

namespace {

PolicyParams paper(char const* model) {
    return resolve({.name = "dynamickv", .capacity = 128, .preset = "paper"}, model).value();
}

}  // namespace

TEST_CASE("the paper's preset is what DynamicKV published: window 8, kernel 7, m 4, r_max 10") {
    for (char const* const model :
         {"Meta-Llama-3-8B-Instruct", "internlm2_5-7b-chat-1m", "Mistral-7B-Instruct-v0.2",
          "Qwen2-7B-Instruct", "SmolLM2-135M-Instruct", ""}) {
        CAPTURE(model);
        auto const params = paper(model);
        CHECK(params.window == 8);
        CHECK(params.kernel == 7);
        CHECK(params.update_interval == 4);
        CHECK(params.r_min == 0);
        CHECK(params.capacity == 128);
    }
}

TEST_CASE("the paper's preset differs between families of models") {
    CHECK(paper("Meta-Llama-3-8B-Instruct").pool == Pool::Avg);
    CHECK(paper("internlm2_5-7b-chat-1m").pool == Pool::Avg);
    CHECK(paper("mistralai/Mistral-7B-Instruct-v0.2").pool == Pool::Max);
    CHECK(paper("QWEN2-7B-Instruct").pool == Pool::Max);

    CHECK(paper("Meta-Llama-3-8B-Instruct").r_max == 10);
    CHECK(paper("Mistral-7B-Instruct-v0.2").r_max == 10);
    CHECK(paper("Qwen2-7B-Instruct").r_max == 5);
    // A model that nobody tried gets what Llama-3 got.
    CHECK(paper("SmolLM2-135M-Instruct") == paper("Meta-Llama-3-8B-Instruct"));
    CHECK(paper("") == paper("Meta-Llama-3-8B-Instruct"));
}

TEST_CASE("what is asked for goes over a preset, the preset over the defaults") {
    auto const params = resolve(
        {.name = "dynamickv", .window = 16, .pool = Pool::Max, .r_min = 0.3, .preset = "paper"},
        "Meta-Llama-3-8B-Instruct");
    REQUIRE(params);
    CHECK(params.value().window == 16);
    CHECK(params.value().pool == Pool::Max);
    CHECK(params.value().r_min == 0.3);
    CHECK(params.value().kernel == 7);
    CHECK(params.value().capacity == PolicyParams().capacity);
    CHECK(params.value().reduce == PolicyParams().reduce);
}

TEST_CASE("an unknown preset is refused with the list of the known ones") {
    auto const params = resolve({.name = "dynamickv", .preset = "papre"}, "Qwen2");
    REQUIRE_FALSE(params);
    CHECK(params.error().code == ErrorCode::NotFound);
    CHECK(params.error().message == "no preset is called \"papre\"; there is paper");
}

TEST_CASE("the table ends with a preset for every model") {
    CHECK(presets().size() == 3);
    CHECK(presets().back().family.empty());
}
