// HF exports, mlx-lm prompt caches, vLLM folders, LMCache chunks: as their programs write them.
#include <array>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "tests/cli/saved/formats/foreign.h"

using namespace dkv;
using namespace dkv::test;

TEST_CASE_FIXTURE(ForeignFilesFixture,
                  "an HF export is read by its tensors, with or without a batch of one") {
    auto file = hf_file();
    for (bool const batched : {true, false}) {
        if (!batched)
            for (auto& [name, tensor] : file.header.items())
                tensor["shape"] = {2, 3, 4};
        auto const cache = open(file.text());
        REQUIRE(cache);
        auto const& facts = cache.value()->facts();
        CHECK(facts.format == FileFormat::Hf);
        CHECK(facts.geometry == Geometry{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 4});
        CHECK(facts.prompt_tokens == 3);
        CHECK(facts.lengths == std::vector<std::uint32_t>(4, 3));
        CHECK_FALSE(facts.compacted);
        auto const layer = cache.value()->layer(1).value();
        check_element(layer.keys, {1, 2, 3}, 1023);
        check_element(layer.values, {0, 1, 0}, 1104);
        CHECK(cache.value()->verify(1));
    }
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "what the user says goes before what a file says") {
    auto const cache = open(hf_file().text(), {.model = "mine", .rope = {.theta = 7}});
    REQUIRE(cache);
    CHECK(cache.value()->facts().model == "mine");
    CHECK(cache.value()->facts().rope.theta == 7);
}

TEST_CASE_FIXTURE(ForeignFilesFixture,
                  "HF exports that cannot be one prompt's are refused by name") {
    auto const spoiled = [&](std::string const& message, auto change,
                             ErrorCode code = ErrorCode::CorruptData) {
        auto file = hf_file();
        change(file.header);
        check_refused(file.text(), message, code);
    };
    spoiled(
        "k_0 is F32 [2, 1, 3, 4]: 2 sequences, where one is read",
        [](Header& header) {
            header["k_0"]["shape"] = {2, 1, 3, 4};
        },
        ErrorCode::Unsupported);
    spoiled("k_0 is F32 [24], not [heads, tokens, head_dim]",
            [](Header& header) { header["k_0"]["shape"] = {24}; });
    spoiled("v_0 is F32 [2, 3, 4], not F32 [1, 2, 3, 4] as k_0", [](Header& header) {
        header["v_0"]["shape"] = {2, 3, 4};
    });
    spoiled("k_1 is F32 [3, 2, 4], which does not match k_0, F32 [1, 2, 3, 4]", [](Header& header) {
        header["k_1"]["shape"] = {3, 2, 4};
    });
    spoiled(
        "k_0 is I32, not F32, F16 or BF16", [](Header& header) { header["k_0"]["dtype"] = "I32"; },
        ErrorCode::Unsupported);
    spoiled(
        "k_0 is U32, not F32, F16 or BF16: rows that were quantised are not read; save the cache "
        "without quantising it",
        [](Header& header) { header["k_0"]["dtype"] = "U32"; }, ErrorCode::Unsupported);
    SavedFile wide;
    for (char const* name : {"k_0", "v_0"})
        wide.add(name, "F64", {1, 1, 1, 1}, std::string(8, '\0'));
    check_refused(wide.text(), "k_0 is F64, not F32, F16 or BF16", ErrorCode::Unsupported);
    spoiled(
        "v_0 is F32 [1, 2, 4, 3], not F32 [1, 2, 3, 4] as k_0: keys and values of different "
        "head_dim (MLA) are not read",
        [](Header& header) {
            header["v_0"]["shape"] = {1, 2, 4, 3};
        });
    spoiled("the metadata's n_prompt is \"2\", where a layer has 3 rows",
            [](Header& header) { header["__metadata__"]["n_prompt"] = "2"; });
    spoiled("k_0 has 3 of 9 tokens, but positions_0 is missing",
            [](Header& header) { header["__metadata__"]["n_prompt"] = "9"; });
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "a vLLM folder's layers are views, in each of its layouts") {
    struct Case {
        std::vector<std::uint64_t> shape;
        std::string words;
        OpenOptions options;
    };
    // 5 tokens, 3 heads, 4 dims.
    for (Case const& each :
         {Case{{2, 5, 3, 4}, "2THD", {}}, Case{{5, 2, 3, 4}, "T2HD", {}},
          Case{{5, 3, 8}, "TH2D", {}}, Case{{2, 5, 12}, "2THD", {.layout = "2THD", .kv_heads = 3}},
          Case{{5, 2, 12}, "T2HD", {.layout = "T2HD", .kv_heads = 3}}}) {
        CAPTURE(each.words);
        std::string const hash = folder / "0abc";
        std::filesystem::create_directory(hash);
        for (int layer = 0; layer < 11; ++layer)
            test::write_file(
                hash + "/model.layers." + std::to_string(layer) + ".self_attn.attn.safetensors",
                vllm_layer(each.shape, static_cast<float>(1000 * layer)).text());
        // The folder of the one prompt, or the one around it.
        for (std::string const& where : {hash, folder.path()}) {
            auto const cache = open_cache(where, each.options);
            REQUIRE(cache);
            auto const& facts = cache.value()->facts();
            CHECK(facts.format == FileFormat::Vllm);
            CHECK(facts.format_words == "vLLM ExampleConnector (" + each.words + ")");
            CHECK(facts.geometry ==
                  Geometry{.layers = 11, .q_heads = 3, .kv_heads = 3, .head_dim = 4});
            CHECK(facts.prompt_tokens == 5);
            // Head 2, token 3, dim 1 of layer 10: not of layer 2.
            std::uint32_t const h = 2, t = 3, d = 1;
            auto const layer = cache.value()->layer(10).value();
            bool const paired = each.words == "TH2D", split = each.words == "2THD";
            auto const at = [&](std::uint32_t kv) {
                return split    ? ((kv * 5 + t) * 3 + h) * 4 + d
                       : paired ? (t * 3 + h) * 8 + kv * 4 + d
                                : ((t * 2 + kv) * 3 + h) * 4 + d;
            };
            check_element(layer.keys, {h, t, d}, 10000.f + static_cast<float>(at(0)));
            check_element(layer.values, {h, t, d}, 10000.f + static_cast<float>(at(1)));
            CHECK(cache.value()->verify(10));
        }
        std::filesystem::remove_all(hash);
    }
}

TEST_CASE_FIXTURE(ForeignFilesFixture,
                  "a vLLM folder that can be read in two ways asks for the layout") {
    std::string const layer = folder / "model.layers.0.attn.safetensors";
    auto const shaped = [&](std::vector<std::uint64_t> const& shape, OpenOptions const& options,
                            ErrorCode code) {
        test::write_file(layer, vllm_layer(shape, 0).text());
        return folder_refused(code, options);
    };
    std::string const file = "/model.layers.0.attn.safetensors: ";
    auto const unsupported = ErrorCode::Unsupported;
    CHECK(shaped({2, 2, 3, 4}, {}, unsupported) ==
          file + "kv_cache is [2, 2, 3, 4], which may be 2THD or T2HD: say --layout");
    CHECK(shaped({5, 2, 8}, {}, unsupported) ==
          file + "kv_cache is [5, 2, 8], which may be T2HD or TH2D: say --layout");
    CHECK(shaped({2, 5, 12}, {.layout = "2THD"}, unsupported) ==
          file + "kv_cache is [2, 5, 12], which does not tell heads from dims: say --kv-heads");
    CHECK(shaped({5, 2, 3, 4}, {.layout = "2THD"}, ErrorCode::InvalidArgument) ==
          file + "kv_cache is [5, 2, 3, 4], which is not 2THD but T2HD");
    CHECK(shaped({5, 3, 7}, {}, ErrorCode::CorruptData) ==
          file + "kv_cache has rows of 7, not a multiple of 2");
    CHECK(shaped({5, 3, 4, 2, 1}, {}, ErrorCode::CorruptData) ==
          file +
              "kv_cache is [5, 3, 4, 2, 1], not [2, tokens, heads, head_dim] (2THD), [tokens, "
              "2, heads, head_dim] (T2HD) or [tokens, heads, 2 · head_dim] (TH2D)");
    test::write_file(layer, vllm_layer({5, 2, 3, 4}, 0).text());
    test::write_file(folder / "model.layers.1.attn.safetensors",
                     vllm_layer({6, 2, 3, 4}, 0).text());
    CHECK(folder_refused(ErrorCode::CorruptData) ==
          "/model.layers.1.attn.safetensors: kv_cache is F32 [6, 2, 3, 4], and F32 [5, 2, 3, 4] "
          "in model.layers.0.attn.safetensors");
    std::filesystem::remove(folder / "model.layers.1.attn.safetensors");
    REQUIRE(::mkfifo((folder / "model.layers.1.attn.safetensors").c_str(), 0600) == 0);
    CHECK(folder_refused(ErrorCode::Io) == "/model.layers.1.attn.safetensors: not a regular file");
    check_refused(vllm_layer({5, 2, 3, 4}, 0).text(),
                  "one layer of a vLLM cache: give the folder that it is in", unsupported);
}

TEST_CASE_FIXTURE(ForeignFilesFixture,
                  "LMCache's chunks become one prompt, in the order of their writing") {
    // Hashes do not sort as the prompt does; the times do.
    char const* const names[] = {"vllm@org-m@1@0@f1.data", "vllm@org-m@1@0@0b.data",
                                 "vllm@org-m@1@0@77.data"};
    std::int32_t const tokens[] = {4, 4, 1};
    for (int i = 0; i < 3; ++i) {
        std::string const file = folder / names[i];
        test::write_file(file, chunk(2, tokens[i], static_cast<float>(1000 * i)));
        timespec const times[] = {{100, i}, {100, i}};
        REQUIRE(::utimensat(AT_FDCWD, file.c_str(), times, 0) == 0);
    }
    auto const cache = open_cache(folder.path(), {.kv_heads = 2});
    REQUIRE(cache);
    auto const& facts = cache.value()->facts();
    CHECK(facts.format == FileFormat::Lmcache);
    CHECK(facts.format_words ==
          "LMCache (3 chunks), in the order of their writing: one that is missing between them "
          "would not be seen");
    CHECK(facts.model == "org-m");
    CHECK(facts.prompt_tokens == 9);
    CHECK(facts.geometry == Geometry{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 4});
    auto const layer = cache.value()->layer(1).value();
    // Chunk 1 (1000 …), keys of layer 1 after those of layer 0, its token 2, head 1, dim 3.
    check_element(layer.keys, {1, 6, 3}, 1000 + 4 * 8 + 2 * 8 + 4 + 3);
    check_element(layer.values, {1, 6, 3}, 1000 + 3 * 4 * 8 + 2 * 8 + 4 + 3);
    check_element(layer.values, {0, 8, 0}, 2000 + 3 * 8);
    CHECK(cache.value()->verify(1));

    // A single file is a prompt of its own, whose rows are views.
    auto const one = open_cache(folder / names[0], {.kv_heads = 2});
    REQUIRE(one);
    CHECK(one.value()->facts().prompt_tokens == 4);
    check_element(one.value()->layer(1).value().keys, {1, 2, 3}, 4 * 8 + 2 * 8 + 4 + 3);
}

TEST_CASE_FIXTURE(ForeignFilesFixture,
                  "LMCache's chunks in no known order, or of no known heads, are refused") {
    for (char const* name : {"vllm@m@1@0@2.data", "vllm@m@1@0@1.data"}) {
        test::write_file(folder / name, chunk(2, 4, 0));
        timespec const times[] = {{100, 0}, {100, 0}};
        REQUIRE(::utimensat(AT_FDCWD, (folder / name).c_str(), times, 0) == 0);
    }
    CHECK(folder_refused(ErrorCode::Unsupported, {.kv_heads = 2}) ==
          ": nothing tells which of vllm@m@1@0@1.data and vllm@m@1@0@2.data comes first: call the "
          "chunks 0.data, 1.data …");
    std::filesystem::rename(folder / "vllm@m@1@0@2.data", folder / "1.data");
    std::filesystem::rename(folder / "vllm@m@1@0@1.data", folder / "0.data");
    REQUIRE(open_cache(folder.path(), {.kv_heads = 2}));
    test::write_file(folder / "0.data", chunk(2, 3, 0));
    CHECK(folder_refused(ErrorCode::CorruptData, {.kv_heads = 2}) ==
          "/1.data: 4 tokens after chunks of 3 and 3: the order is not the prompt's; call the "
          "chunks 0.data, 1.data …");
    test::write_file(folder / "1.data", chunk(3, 3, 0));
    CHECK(folder_refused(ErrorCode::CorruptData, {.kv_heads = 2}) ==
          "/1.data: f32 [2, 3, 3, 8] does not match 0.data, f32 of 2 layers and rows of 8");
    CHECK(folder_refused(ErrorCode::Unsupported) ==
          "/0.data: rows of 8 do not tell heads from dims: say --kv-heads");
    CHECK(folder_refused(ErrorCode::InvalidArgument, {.kv_heads = 3}) ==
          "/0.data: rows of 8 do not divide into 3 KV heads (--kv-heads)");
    test::write_file(folder / "0.data", chunk(2, 3, 0, 7));
    CHECK(folder_refused(ErrorCode::Unsupported, {.kv_heads = 2}) ==
          "/0.data: dtype 7: only 1 and 2 (f16), 3 (bf16) and 4 (f32) are read; it may be one of "
          "quantised rows");
    std::string lying = chunk(2, 3, 0);
    lying[5 * 4] = 5;  // tokens
    test::write_file(folder / "0.data", lying);
    CHECK(folder_refused(ErrorCode::CorruptData, {.kv_heads = 2}) ==
          "/0.data: the header says 384 bytes and f32 [2, 2, 5, 8], and 384 bytes follow");
    lying[4] = 3;
    test::write_file(folder / "0.data", lying);
    CHECK(folder_refused(ErrorCode::Unsupported, {.kv_heads = 2}) ==
          "/0.data: format 3 (one layer alone), [2, 2, 5, 8]: only 1, [2, layers, tokens, width], "
          "is read");
}
