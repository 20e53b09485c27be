// A layer or a chunk that is missing, there twice or half written: every reader says which.
#include <filesystem>

#include <doctest/doctest.h>

#include "tests/cli/saved/formats/foreign.h"

using namespace dkv;
using namespace dkv::test;

namespace {

/// Tensors "PREFIX{layer}SUFFIX" of these layers.
SavedFile layers_named(std::vector<int> const& layers,
                       std::vector<std::array<std::string, 2>> const& names) {
    SavedFile file;
    for (int const layer : layers)
        for (auto const& [prefix, suffix] : names)
            file.add(prefix + std::to_string(layer) + suffix, "F32", {1, 1, 2, 2}, floats(4, 1));
    return file;
}

SavedFile dkv_layers(std::vector<int> const& layers) {
    SavedFile file = layers_named(layers, {{"layers.", ".keys"}, {"layers.", ".values"}});
    for (auto& [name, tensor] : file.header.items())
        tensor["shape"] = {1, 2, 2};
    file.header["__metadata__"] = {
        {"format", "dkv"}, {"version", "1"}, {"model", "m"}, {"n_prompt", "2"}};
    return file;
}

struct FolderFixture : ForeignFilesFixture {
    void layer(std::string const& name, std::vector<std::uint64_t> const& shape = {5, 2, 3, 4}) {
        write_file(folder / name, vllm_layer(shape, 0).text());
    }
    void layers(std::vector<int> const& numbers) {
        for (int const number : numbers)
            layer("model.layers." + std::to_string(number) + ".self_attn.attn.safetensors");
    }
    std::string refused() { return folder_refused(ErrorCode::CorruptData, {.kv_heads = 2}); }
};

}  // namespace

TEST_CASE_FIXTURE(ForeignFilesFixture, "a layer that is missing from a file is named") {
    auto const hf = [](std::vector<int> const& layers) {
        return layers_named(layers, {{"k_", ""}, {"v_", ""}});
    };
    REQUIRE(open(hf({0, 1, 2}).text()));
    REQUIRE(open(dkv_layers({0, 1, 2}).text()));
    for (auto const layers : {+hf, &dkv_layers}) {
        check_refused(layers({0, 1, 2, 4}).text(), "layer 3 is missing: the last one is 4");
        check_refused(layers({1, 2}).text(), "layer 0 is missing: the last one is 2");
        check_refused(layers({0, 1, 5}).text(), "layers 2, 3, 4 are missing: the last one is 5");
        check_refused(layers({0, 99}).text(),
                      "layers 1, 2, 3 and 95 more are missing: the last one is 99");
        check_refused(layers({0, 123456}).text(),
                      "layer 123456 is more than the 1024 that a model may have");
    }
    auto file = hf({0, 1});
    file.header["w_1"] = file.header["v_1"];
    file.header.erase("v_1");
    check_refused(file.text(), "there is k_1 and no v_1");
    file = hf({0, 1});
    file.header["w_0"] = file.header["k_0"];
    file.header.erase("k_0");
    check_refused(file.text(), "k_0 is missing");
    file = hf({0, 1});
    file.header["k_03"] = file.header["k_1"];
    file.header.erase("k_1");
    check_refused(file.text(), "k_1 is missing");
    file = hf({0, 1});
    file.add("k_01", "F32", {1}, "abcd");
    check_refused(file.text(),
                  "the tensor \"k_01\" is of no layer: layers are k_0, v_0, k_1, v_1 …");
    file = dkv_layers({0, 1});
    file.header["layers.1.value"] = file.header["layers.1.values"];
    file.header.erase("layers.1.values");
    check_refused(file.text(), "layers.1.values is missing");
}

TEST_CASE_FIXTURE(FolderFixture, "a layer that is missing from a vLLM folder is named") {
    layers({0, 1, 2, 4});
    CHECK(refused() == ": layer 3 is missing: the last one is 4");
    layers({3});
    REQUIRE(open_cache(folder.path()));
    layers({8});
    CHECK(refused() == ": layers 5, 6, 7 are missing: the last one is 8");
    for (int layer = 0; layer < 8; ++layer)
        std::filesystem::remove(
            folder / ("model.layers." + std::to_string(layer) + ".self_attn.attn.safetensors"));
    CHECK(refused() == ": layers 0, 1, 2 and 5 more are missing: the last one is 8");
}

TEST_CASE_FIXTURE(FolderFixture,
                  "layers of another model, twice or half written, are named in a vLLM folder") {
    layers({0, 1});
    layer("draft.layers.1.self_attn.attn.safetensors");
    CHECK(refused() ==
          ": model.layers.0.self_attn.attn.safetensors is not named like "
          "draft.layers.1.self_attn.attn.safetensors: is it a layer of the same model?");
    std::filesystem::remove(folder / "draft.layers.1.self_attn.attn.safetensors");
    layer("model.layers.01.self_attn.attn.safetensors");
    CHECK(refused() ==
          ": layer 1 is there twice: model.layers.01.self_attn.attn.safetensors and "
          "model.layers.1.self_attn.attn.safetensors");
    std::filesystem::remove(folder / "model.layers.01.self_attn.attn.safetensors");
    layer("model.layers.2.self_attn.attn.safetensors", {6, 2, 3, 4});
    CHECK(refused() ==
          "/model.layers.2.self_attn.attn.safetensors: kv_cache is F32 [6, 2, 3, 4], "
          "and F32 [5, 2, 3, 4] in model.layers.0.self_attn.attn.safetensors");
    write_file(folder / "mine.safetensors", hf_file().text());
    CHECK(is_cache_folder(folder.path()));
    CHECK(refused() ==
          ": model.layers.0.self_attn.attn.safetensors is not named like "
          "mine.safetensors: is it a layer of the same model?");
    std::filesystem::remove(folder / "mine.safetensors");
    write_file(folder / "model.layers.2.self_attn.attn.safetensors", "");
    CHECK(refused() ==
          "/model.layers.2.self_attn.attn.safetensors: the file is empty: it may "
          "be one that was not written to its end");
    CHECK(is_cache_folder(folder.path()));
    std::filesystem::rename(folder / "model.layers.2.self_attn.attn.safetensors",
                            folder / "model.layers.2.self_attn.attn.safetensors.tmp");
    CHECK(refused() ==
          "/model.layers.2.self_attn.attn.safetensors.tmp: by its name, a part of the "
          "cache that was not written to its end: save the cache again, or remove "
          "this file");
    std::filesystem::remove(folder / "model.layers.2.self_attn.attn.safetensors.tmp");
    // What a Mac puts beside a file.
    write_file(folder / "._model.layers.0.self_attn.attn.safetensors", "Mac");
    CHECK(open_cache(folder.path()));
}

TEST_CASE_FIXTURE(FolderFixture, "the layer's number is the one that differs between the names") {
    for (int const layer_of_two : {0, 1})
        layer("vision1.layers." + std::to_string(layer_of_two) + ".attn2.safetensors");
    REQUIRE(open_cache(folder.path()));
    layer("vision2.layers.2.attn2.safetensors");
    CHECK(refused() == ": the names differ in several numbers: which is the layer's?");
}

TEST_CASE_FIXTURE(FolderFixture, "a chunk that is missing or there twice is named") {
    for (int const number : {0, 1, 2, 4})
        write_file(folder / (std::to_string(number) + ".data"), chunk(2, 4, 0));
    CHECK(refused() == ": missing: chunk 3; of the chunks 0 … 4, 4 are there");
    write_file(folder / "3-again.data", chunk(2, 4, 0));
    REQUIRE(open_cache(folder.path(), {.kv_heads = 2}));
    write_file(folder / "3.data", chunk(2, 4, 0));
    CHECK(refused() == ": chunk 3 is there twice: 3.data is the second");
    std::filesystem::remove(folder / "3-again.data");
    std::filesystem::remove(folder / "0.data");
    CHECK(refused() == ": missing: chunk 0; of the chunks 0 … 4, 4 are there");
    write_file(folder / "0.data", chunk(2, 4, 0).substr(0, 100));
    CHECK(refused() ==
          "/0.data: the header says 512 bytes and f32 [2, 2, 4, 8], and 72 bytes "
          "follow");
    CHECK(is_cache_folder(folder.path()));
    std::filesystem::rename(folder / "0.data", folder / "0.data.tmp");
    CHECK(refused() ==
          "/0.data.tmp: by its name, a part of the cache that was not written to its "
          "end: save the cache again, or remove this file");
}

TEST_CASE_FIXTURE(FolderFixture, "one worker's chunks, and chunks of another, are refused") {
    write_file(folder / "vllm@org-m@2@0@f1.data", chunk(2, 4, 0));
    CHECK(folder_refused(ErrorCode::Unsupported, {.kv_heads = 2}) ==
          "/vllm@org-m@2@0@f1.data: worker 0 of 2: the other workers have the other heads, and "
          "chunks of one worker alone are read");
    std::filesystem::rename(folder / "vllm@org-m@2@0@f1.data", folder / "org-m@1@0@f1@half.data");
    auto const cache = open_cache(folder.path(), {.kv_heads = 2});
    REQUIRE(cache);
    CHECK(cache.value()->facts().model == "org-m");
    write_file(folder / "other@1@0@f2@half.data", chunk(2, 4, 0));
    auto const old = std::filesystem::last_write_time(folder / "other@1@0@f2@half.data");
    std::filesystem::last_write_time(folder / "org-m@1@0@f1@half.data",
                                     old - std::chrono::hours(1));
    CHECK(refused() ==
          "/other@1@0@f2@half.data: by its name, of another model or worker than "
          "org-m@1@0@f1@half.data");
}
