// dkv plan: geometries by name, by config.json, by flags; no data, no sidecar.
#include <doctest/doctest.h>

#include "cli/saved/models.h"
#include "tests/cli/fakes.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

Ran plan(std::vector<std::string> arguments) {
    FakeSidecar unasked;
    arguments.insert(arguments.begin(), "plan");
    auto const ran = run_dkv(std::move(arguments), unasked);
    CHECK(unasked.connects == 0);
    return ran;
}

std::string config(TempDir const& folder, std::string const& text) {
    write_file(folder / "config.json", text);
    return folder / "config.json";
}

}  // namespace

TEST_CASE("dkv plan: a model by its name, a prompt's length with its unit") {
    auto const json = Json::parse(plan({"llama-3-8b", "--tokens", "32k", "--policy", "dynamickv",
                                        "--capacity", "512", "--json"})
                                      .out);
    CHECK(json.at("prompt_tokens") == 32768);
    CHECK(json.at("bytes_full") == std::uint64_t{4} << 30U);
    CHECK(json.at("bytes_kept") == std::uint64_t{64} << 20U);
    CHECK(json.at("lengths").is_null());
    CHECK(json.at("params").at("capacity") == 512);

    auto const text = plan({"llama-3.1-8b", "--tokens", "32k", "--capacity", "512"}).out;
    CHECK(contains(text, "llama-3.1-8b, 32768 tokens\n"));
    CHECK(contains(text, "geometry  32 layers, 32/8 heads, head_dim 128, bf16\n"));
    CHECK(contains(text, "whole     4.00 GiB\n"));
    CHECK(contains(text, "kept      64.0 MiB (1.6 %)\n"));
}

TEST_CASE("dkv plan: a geometry that is told, and budgets that need no prompt") {
    auto const ran = plan({"--layers", "4", "--heads", "8/2", "--head-dim", "64", "--dtype", "f32",
                           "--tokens", "1000", "--policy", "snapkv", "--capacity", "100"});
    REQUIRE(ran.exit_code == 0);
    CHECK(contains(ran.out, "geometry  4 layers, 8/2 heads, head_dim 64, f32\n"));
    CHECK(contains(ran.out,
                   "LAYERS  TOKENS PER HEAD    KEPT  BYTES A LAYER\n"
                   "0-3                 100  10.0 %      100.0 KiB\n"));
}

TEST_CASE("dkv plan: every known model is a geometry that can be") {
    for (auto const& model : cli::known_models()) {
        CAPTURE(model.name);
        CHECK(check(model.geometry));
        CHECK(cli::find_model(std::string(model.name)));
    }
}

TEST_CASE("dkv plan: a config.json says geometry, dtype and which layers are bounded") {
    TempDir const folder;
    auto const path = config(folder, R"({"model_type": "gemma3_text", "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "torch_dtype": "float16",
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention",
                        "sliding_attention", "sliding_attention", "full_attention"]})");
    auto const model = cli::read_config_json(path);
    REQUIRE(model);
    CHECK(model.value().geometry ==
          Geometry{.layers = 1, .q_heads = 4, .kv_heads = 1, .head_dim = 256, .dtype = Dtype::F16});
    CHECK(model.value().layers_bounded == 5);
    CHECK(contains(plan({folder.path(), "--tokens", "100", "--policy", "fullkv"}).out,
                   "beside    5 layers with a window of their own, which stay as they are\n"));

    config(folder, R"({"text_config": {"num_hidden_layers": 2, "num_attention_heads": 4,
        "hidden_size": 256}})");
    CHECK(cli::read_config_json(path).value().geometry.kv_heads == 4);
    CHECK(cli::read_config_json(path).value().geometry.head_dim == 64);
}

TEST_CASE("dkv plan: a window that is given without layers is every layer's, or the last ones'") {
    TempDir const folder;
    auto const bounded = [&](std::string const& fields) {
        return cli::read_config_json(
            config(folder, R"({"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64,
                               "max_position_embeddings": 4096, )" +
                               fields + "}"));
    };
    CHECK(bounded(R"("model_type": "mistral", "sliding_window": 1024)").error().message ==
          folder / "config.json" +
              ": a sliding window bounds every layer: none is left to compress");
    auto const layers = [&](char const* fields) { return bounded(fields).value().layers_bounded; };
    CHECK(layers(R"("model_type": "mistral", "sliding_window": null)") == 0);
    CHECK(layers(R"("model_type": "phi3", "sliding_window": 4096)") == 0);
    CHECK(layers(R"("model_type": "qwen2", "sliding_window": 1024)") == 0);
    CHECK(layers(R"("use_sliding_window": false, "sliding_window": 1024)") == 0);
    CHECK(layers(R"("model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 3,
                    "sliding_window": 1024)") == 1);
}

TEST_CASE("dkv plan: a config.json that lies is refused, naming the field") {
    TempDir const folder;
    auto const message = [&](char const* text) {
        return cli::read_config_json(config(folder, text)).error().message;
    };
    auto const begin = folder / "config.json" + ": ";
    CHECK(message("[1]") == begin + "this is not a JSON object");
    CHECK(message("{") == begin + "this is not a JSON object");
    CHECK(message("{}") == begin + "it has no num_hidden_layers");
    CHECK(message(R"({"num_hidden_layers": -1})") ==
          begin + "num_hidden_layers is -1, which is not a count");
    CHECK(message(R"({"num_hidden_layers": 2, "num_attention_heads": 0})") ==
          begin + "num_attention_heads is 0");
    CHECK(message(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 8,
                      "layer_types": ["full_attention"]})") ==
          begin + "layer_types does not name every layer");
    CHECK(message(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 8,
                      "dtype": "int8"})") ==
          begin + "dtype int8 is none of float32, float16, bfloat16");
    CHECK(contains(message(R"({"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 8,
                               "num_key_value_heads": 3})"),
                   begin + "q_heads is 4, no multiple of kv_heads 3"));
}

TEST_CASE("dkv plan: what is missing or makes no sense is one line") {
    CHECK(plan({"--tokens", "5"}).err ==
          "dkv: give a MODEL, --config-json, or --layers, --heads and --head-dim (see 'dkv plan "
          "--help')\n");
    CHECK(plan({"llama-3-8b"}).err == "dkv: how long is the prompt? give --tokens\n");
    CHECK(plan({"llama-3-8b", "--tokens", "5", "--heads", "x"}).err ==
          "dkv: --heads: 'x' is not QUERY/KV heads, for example 32/8 (see 'dkv plan --help')\n");
    auto const unknown = plan({"llama-9", "--tokens", "5"});
    CHECK(unknown.exit_code == 1);
    CHECK(
        contains(unknown.err, "no model and no file is called \"llama-9\"; known are llama-2-7b"));
    CHECK(plan({"llama-3-8b", "--tokens", "5", "--keep-mass", "0.9"}).exit_code == 1);
}
