// dkv_save: what an engine's rows become, read back as the sidecar reads them.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "cli/saved/formats/saved_cache.h"
#include "protocol/sdk/dkv.h"
#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

using namespace dkv;

namespace {

/// Two layers of 2 KV heads, 4 query heads, 3 dims, 5 tokens, f32: head · 100 + token · 10 + dim.
struct Engine {
    test::TempDir folder;
    std::string path = folder / "cache";
    std::vector<float> rows, queries;
    std::vector<dkv_save_layer> layers;
    dkv_save_options options{};

    Engine() {
        for (int head = 0; head < 4; ++head)
            for (int token = 0; token < 5; ++token)
                for (int dim = 0; dim < 3; ++dim)
                    rows.push_back(static_cast<float>(head * 100 + token * 10 + dim));
        queries = rows;
        options.struct_bytes = sizeof options;
        options.geometry = {
            .layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 3, .dtype = DKV_F32};
        options.model = "m";
        options.prompt_tokens = 5;
        layers.assign(2, dkv_save_layer{});
        for (auto& layer : layers) {
            layer.struct_bytes = sizeof layer;
            layer.keys = layer.values = dense(rows.data());
        }
    }
    static dkv_save_rows dense(float const* data) {
        return {.data = data,
                .head_stride = 15,
                .token_stride = 3,
                .dim_stride = 1,
                .head_offset = nullptr};
    }
    dkv_status save(uint64_t* bytes = nullptr) {
        return dkv_save(path.c_str(), &options, layers.data(), bytes);
    }
    std::unique_ptr<SavedCache> saved() {
        uint64_t bytes = 0;
        auto const status = save(&bytes);
        REQUIRE_MESSAGE(status == DKV_OK, dkv_last_error());
        CHECK(bytes == std::filesystem::file_size(path));
        auto cache = open_cache(path);
        REQUIRE(cache);
        REQUIRE(cache.value()->verify(0));
        REQUIRE(cache.value()->verify(1));
        CHECK(cache.value()->facts().has_checksums);
        return std::move(cache).value();
    }
    void check_refused(std::string const& message, dkv_status wanted = DKV_INVALID_ARGUMENT) {
        CAPTURE(message);
        CHECK(save() == wanted);
        CHECK(std::string(dkv_last_error()) == message);
        CHECK(std::filesystem::is_empty(folder.path()));
    }
};

float element(RowsView const& view, std::uint32_t head, std::uint32_t token, std::uint32_t dim) {
    float value = 0;
    std::memcpy(&value, view.row(head, token) + dim * sizeof value, sizeof value);
    return value;
}

}  // namespace

TEST_CASE_FIXTURE(Engine, "an engine's cache is saved with its queries and all that was said") {
    std::int32_t const tokens[] = {4, 3, 2, 1, 0};
    char const* const provenance[] = {"policy", "none", "source", "test", nullptr};
    options.tokens = tokens;
    options.query_rows = 2;
    options.scale = 0.5f;
    options.softcap = 20;
    options.rope_theta = 10000;
    options.rope_dims = 2;
    options.rope_interleaved = 1;
    options.rope_scaling = "{}";
    options.provenance = provenance;
    for (auto& layer : layers) {
        layer.queries = dense(queries.data() + 9);  // The last two of five tokens.
        layer.queries.head_stride = 15;
    }

    auto const cache = saved();

    auto const& facts = cache->facts();
    CHECK(facts.geometry == Geometry{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 3});
    CHECK(facts.model == "m");
    CHECK(facts.prompt_tokens == 5);
    CHECK(facts.query_rows == 2);
    CHECK(facts.scale == 0.5f);
    CHECK(facts.softcap == 20.f);
    CHECK(facts.tokens == std::vector<std::int32_t>{4, 3, 2, 1, 0});
    CHECK(facts.rope.theta == 10000);
    CHECK(facts.rope.dims == 2);
    CHECK(facts.rope.interleaved);
    CHECK(facts.rope.scaling == "{}");
    CHECK(facts.provenance ==
          std::map<std::string, std::string>{{"policy", "none"}, {"source", "test"}});
    CHECK_FALSE(facts.compacted);
    auto const layer = cache->layer(1).value();
    CHECK(element(layer.keys, 1, 4, 2) == 142);
    CHECK(element(layer.queries, 3, 0, 0) == 330);
}

TEST_CASE_FIXTURE(Engine, "rows are taken by their strides, not as they lie") {
    // [token, dim, head]: nothing is where a dense tensor has it.
    std::vector<float> turned(30);
    for (std::size_t head = 0; head < 2; ++head)
        for (std::size_t token = 0; token < 5; ++token)
            for (std::size_t dim = 0; dim < 3; ++dim)
                turned[token * 6 + dim * 2 + head] = rows[head * 15 + token * 3 + dim];
    for (auto& layer : layers)
        layer.values = {.data = turned.data(),
                        .head_stride = 1,
                        .token_stride = 6,
                        .dim_stride = 2,
                        .head_offset = nullptr};
    auto const cache = saved();
    auto const layer = cache->layer(0).value();
    for (std::uint32_t head = 0; head < 2; ++head)
        for (std::uint32_t token = 0; token < 5; ++token)
            for (std::uint32_t dim = 0; dim < 3; ++dim)
                CHECK(element(layer.values, head, token, dim) ==
                      element(layer.keys, head, token, dim));
}

TEST_CASE_FIXTURE(Engine, "a compacted cache is saved with its positions, ragged or not") {
    std::uint32_t const alike[] = {2, 2}, unlike[] = {1, 3};
    std::int32_t const positions[] = {0, 4, 2, 4}, more[] = {4, 0, 1, 4};
    // As dkv_session_layer gives it: packed, each head from an offset.
    std::uint64_t const offsets[] = {15 * sizeof(float), 0};
    layers[0].lengths = alike;
    layers[0].positions = positions;
    layers[1].lengths = unlike;
    layers[1].positions = more;
    layers[1].keys.head_offset = layers[1].values.head_offset = offsets;

    auto const cache = saved();

    CHECK(cache->facts().compacted);
    CHECK(cache->facts().lengths == std::vector<std::uint32_t>{2, 2, 1, 3});
    auto const first = cache->layer(0).value();
    CHECK(element(first.keys_of(1), 0, 1, 0) == 110);
    CHECK(first.positions_of(1)[0] == 2);
    auto const second = cache->layer(1).value();
    CHECK(element(second.keys_of(0), 0, 0, 0) == 100);
    CHECK(element(second.keys_of(1), 0, 2, 1) == 21);
    CHECK(second.positions_of(1)[2] == 4);
}

TEST_CASE_FIXTURE(Engine, "scores are saved for the policy that ranks by them") {
    float const scores[2][10] = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {0}};
    for (std::size_t layer = 0; layer < 2; ++layer)
        layers[layer].scores = scores[layer];
    auto const cache = saved();
    CHECK(cache->facts().has_scores);
    CHECK(element(cache->layer(0).value().scores, 1, 2, 0) == 8);
    CHECK(element(cache->layer(1).value().scores, 1, 2, 0) == 0);
}

TEST_CASE_FIXTURE(Engine, "sinks are saved with the layers that have them") {
    float const sinks[] = {-1, 0, 2.5F, 30};
    layers[1].sink_logits = sinks;
    CHECK(saved()->facts().sink_logits == std::vector<std::vector<float>>{{}, {-1, 0, 2.5F, 30}});

    // Layers of an earlier dkv.h have none, whatever lies behind them.
    for (auto& layer : layers)
        layer.struct_bytes = offsetof(dkv_save_layer, sink_logits);
    struct Earlier {
        std::byte bytes[offsetof(dkv_save_layer, sink_logits)];
    };
    std::vector<Earlier> earlier(2);
    for (std::size_t index = 0; index < 2; ++index)
        std::memcpy(&earlier[index], &layers[index], sizeof(Earlier));
    REQUIRE(dkv_save(path.c_str(), &options,
                     reinterpret_cast<dkv_save_layer const*>(earlier.data()), nullptr) == DKV_OK);
    CHECK(open_cache(path).value()->facts().sink_logits.empty());
}

TEST_CASE_FIXTURE(Engine, "half floats are saved as they are") {
    std::vector<std::uint16_t> halves(30);
    for (std::size_t i = 0; i < halves.size(); ++i)
        halves[i] = static_cast<std::uint16_t>(i);
    options.geometry.dtype = DKV_BF16;
    for (auto& layer : layers) {
        layer.keys.data = layer.values.data = halves.data();
    }
    auto const cache = saved();
    CHECK(cache->geometry().dtype == Dtype::Bf16);
    CHECK(std::memcmp(cache->layer(1).value().values.data, halves.data(), 60) == 0);
}

TEST_CASE_FIXTURE(Engine, "what cannot be saved is refused by name, and no file is left") {
    auto const good = layers;
    std::uint32_t const fewer[] = {5, 4}, more[] = {5, 6};
    std::int32_t const descending[] = {0, 1, 2, 3, 4, 0, 1, 3, 3};
    std::int32_t const outside[] = {0, 1, 2, 3, 4, 0, 1, 3, 5};
    layers[1].lengths = fewer;
    check_refused("layers[1] is compacted and has no positions");
    layers[1].positions = descending;
    check_refused("layers[1].positions has 3 after 3, of 5 tokens");
    layers[1].positions = outside;
    check_refused("layers[1].positions has 5 after 3, of 5 tokens");
    layers[1].lengths = more;
    check_refused("layers[1].lengths has 6, of 5 tokens");
    layers = good;
    layers[0].values.data = nullptr;
    check_refused("layers[0].values is NULL");
    layers = good;
    options.query_rows = 2;
    check_refused("layers[0].queries is NULL");
    options.query_rows = 6;
    check_refused("options->query_rows is 6, of 5 tokens");
    options.query_rows = 0;
    options.scale = -1;
    check_refused("options->scale, softcap or rope_theta is -1.000000");
    options.scale = 0;
    options.prompt_tokens = 0;
    check_refused("options->prompt_tokens is 0");
    options.prompt_tokens = 5;
    char const* const odd[] = {"policy", nullptr};
    options.provenance = odd;
    check_refused("options->provenance has no value for policy");
    options.provenance = nullptr;
    layers[1].struct_bytes = 8;
    check_refused("layer->struct_bytes is 8, not " + std::to_string(sizeof(dkv_save_layer)));
    layers = good;
    layers[1].struct_bytes = sizeof(dkv_save_layer);
    float const sinks[] = {0, 0, 0, HUGE_VALF};
    layers[1].sink_logits = sinks;
    check_refused("layers[1].sink_logits[3] is inf, not a finite number");
    layers[1].sink_logits = nullptr;
    float scores[10] = {};
    layers[0].scores = scores;
    check_refused("layers[1].scores and layers[0].scores: one is NULL and the other is not");
    scores[7] = std::nanf("");
    layers[1].scores = scores;
    check_refused("layers[0].scores[7] is not finite");
    scores[7] = 0;
    std::uint32_t const lengths[] = {2, 2};
    std::int32_t const positions[] = {0, 1, 0, 1};
    layers[0].lengths = layers[1].lengths = lengths;
    layers[0].positions = layers[1].positions = positions;
    check_refused("layers[0].scores are of every token, and some tokens' rows are missing");
    layers = good;
    layers[1].struct_bytes = sizeof(dkv_save_layer);
    options.struct_bytes = 8;
    check_refused("options->struct_bytes is 8, not " + std::to_string(sizeof options));
    options.struct_bytes = sizeof options;
    options.geometry.q_heads = 3;
    CHECK(save() == DKV_INVALID_ARGUMENT);
    options.geometry.q_heads = 4;
    path = folder / "no/cache";
    check_refused(path + ": No such file or directory", DKV_IO);
    path = "/dev/null";
    check_refused("/dev/null: there is a device or a socket of this name", DKV_ALREADY_EXISTS);
    CHECK(dkv_save(nullptr, &options, layers.data(), nullptr) == DKV_INVALID_ARGUMENT);
    CHECK(dkv_save(path.c_str(), nullptr, layers.data(), nullptr) == DKV_INVALID_ARGUMENT);
    CHECK(dkv_save(path.c_str(), &options, nullptr, nullptr) == DKV_INVALID_ARGUMENT);
}
