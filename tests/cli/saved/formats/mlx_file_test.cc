// mlx-lm's prompt caches, of both generations.
#include <doctest/doctest.h>

#include "tests/cli/saved/formats/foreign.h"

using namespace dkv;
using namespace dkv::test;

namespace {

SavedFile old_file() {
    SavedFile file;
    file.header["__metadata__"] = {{"0.0", ""},        {"0.1", ""},        {"1.model", "org/m"},
                                   {"1.chat", "null"}, {"2.0", "KVCache"}, {"2.1", "KVCache"}};
    for (int layer = 0; layer < 2; ++layer)
        for (int part = 0; part < 2; ++part)
            file.add(std::to_string(layer) + "." + std::to_string(part), "F32", {1, 2, 3, 4},
                     floats(24, static_cast<float>(1000 * layer + 100 * part)));
    return file;
}

std::string count_bytes(std::int32_t count) {
    return std::string(reinterpret_cast<char const*>(&count), sizeof count);
}

/// Two tokens, with room for a third: what is there is no token.
SavedFile new_file(std::array<std::int32_t, 2> const& counts = {2, 2}) {
    SavedFile file;
    file.header["__metadata__"] = {{"0.model", "org/m"}, {"0.chat", "null"}, {"1.0", "KVCache"},
                                   {"1.1", "KVCache"},   {"2.0", ""},        {"2.1.0", "0.2"},
                                   {"2.1.1", "scalar"},  {"2.2.0", "1.2"},   {"2.2.1", "scalar"}};
    for (int layer = 0; layer < 2; ++layer) {
        for (int part = 0; part < 2; ++part)
            file.add(std::to_string(layer) + "." + std::to_string(part), "F32", {1, 2, 3, 4},
                     floats(24, static_cast<float>(1000 * layer + 100 * part)));
        file.add(std::to_string(layer) + ".2", "I32", {},
                 count_bytes(counts[static_cast<std::size_t>(layer)]));
    }
    return file;
}

}  // namespace

TEST_CASE_FIXTURE(ForeignFilesFixture, "a prompt cache of mlx-lm before 0.32 has its rows alone") {
    auto const cache = open(old_file().text());
    REQUIRE(cache);
    auto const& facts = cache.value()->facts();
    CHECK(facts.format == FileFormat::MlxLm031);
    CHECK(facts.format_words == "mlx-lm prompt cache (before 0.32)");
    CHECK(facts.model == "org/m");
    CHECK(facts.provenance == std::map<std::string, std::string>{{"mlx.chat", "null"}});
    CHECK(facts.prompt_tokens == 3);
    check_element(cache.value()->layer(1).value().values, {1, 2, 3}, 1123);
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "a prompt cache of mlx-lm 0.32 has room behind its tokens") {
    auto const cache = open(new_file().text());
    REQUIRE(cache);
    auto const& facts = cache.value()->facts();
    CHECK(facts.format == FileFormat::MlxLm);
    CHECK(facts.format_words == "mlx-lm prompt cache (0.32 and later)");
    CHECK(facts.model == "org/m");
    CHECK(facts.provenance == std::map<std::string, std::string>{{"mlx.chat", "null"}});
    CHECK(facts.prompt_tokens == 2);
    CHECK(facts.lengths == std::vector<std::uint32_t>(4, 2));
    CHECK_FALSE(facts.compacted);
    auto const layer = cache.value()->layer(1).value();
    CHECK(layer.keys.tokens == 2);
    // Head 1 begins behind the room of head 0.
    check_element(layer.keys, {1, 0, 0}, 1012);
    check_element(layer.values, {1, 1, 3}, 1119);
    check_element(layer.values_of(1), {0, 1, 3}, 1119);
    CHECK(cache.value()->verify(1));

    auto wide = new_file();
    wide.add("2.0", "F32", {1, 2, 3, 4}, floats(24, 0));
    wide.add("2.1", "F32", {1, 2, 3, 4}, floats(24, 0));
    wide.add("2.2", "I64", {}, std::string("\2\0\0\0\0\0\0\0", 8));
    wide.header["__metadata__"]["1.2"] = "KVCache";
    CHECK(open(wide.text()));
    wide.header["__metadata__"].erase("0.model");
    wide.header["__metadata__"].erase("0.chat");
    CHECK(open(wide.text()));
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "mlx-lm's other classes are refused by layer and class") {
    struct Case {
        std::string cls, why;
    };
    for (auto const& [cls, why] :
         {Case{"RotatingKVCache",
               ", which keeps a window of the prompt alone: make it without --max-kv-size"},
          Case{"QuantizedKVCache", ", which is quantised: save the cache without --kv-bits"},
          Case{"ChunkedKVCache", ", which keeps the last chunk of the prompt alone"},
          Case{"MambaCache", ", which has a state and not a row for each token"},
          Case{"ArraysCache", ", which has a state and not a row for each token"},
          Case{"BatchKVCache", ", which holds several prompts: extract() one of them"},
          Case{"CacheList", ", which is several caches in one"}, Case{"MyCache", ""}}) {
        auto const message = "layer 1 is a \"" + cls + "\"" + why + ": only KVCache is read";
        auto old = old_file();
        old.header["__metadata__"]["2.1"] = cls;
        check_refused(old.text(), message, ErrorCode::Unsupported);
        auto current = new_file();
        current.header["__metadata__"]["1.1"] = cls;
        check_refused(current.text(), message, ErrorCode::Unsupported);
    }
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "a layer that mlx-lm's file lacks is named") {
    // Bytes of no tensor would be refused first: tensors are renamed.
    auto const moved = [](SavedFile file, std::string const& from, std::string const& to) {
        file.header[to] = file.header[from];
        file.header.erase(from);
        return file.text();
    };
    check_refused(moved(old_file(), "1.1", "3.1"), "layer 2 is missing: the last one is 3");
    check_refused(moved(new_file(), "0.1", "1.3"),
                  "the tensor \"1.3\" is none of a KVCache's, in 2 layers");
    check_refused(moved(old_file(), "1.1", "0.2"),
                  "the tensor \"0.2\" is none of a KVCache's, in 2 layers");
    check_refused(moved(new_file(), "1.2", "weights"),
                  "the tensor \"weights\" is none of a KVCache's, in 2 layers");
    auto file = old_file();
    file.header["__metadata__"].erase("2.1");
    check_refused(file.text(), "the metadata names 1 layers, and there are tensors of 2");
    file = new_file();
    file.header["__metadata__"].erase("1.0");
    check_refused(file.text(), "layer 0 is missing: the last one is 1");
    file.header["__metadata__"].erase("1.1");
    check_refused(file.text(), "the metadata names no layer's class");
    SavedFile alone;
    alone.header["__metadata__"] = {{"1.0", "KVCache"}, {"2.0", ""}};
    for (char const* name : {"0.0", "0.1"})
        alone.add(name, "F32", {1, 1, 1, 1}, floats(1, 0));
    check_refused(alone.text(), "0.2 is missing");
}

TEST_CASE_FIXTURE(ForeignFilesFixture, "counts that cannot be mlx-lm's are refused by name") {
    check_refused(new_file({4, 4}).text(), "0.2 says 4 tokens, and 0.0 is F32 [1, 2, 3, 4]");
    check_refused(new_file({-1, 2}).text(), "0.2 says -1 tokens, and 0.0 is F32 [1, 2, 3, 4]");
    check_refused(new_file({2, 0}).text(), "layer 1 has no tokens");
    check_refused(new_file({2, 3}).text(), "layer 1 has 3 tokens, and layer 0 has 2");
    auto file = new_file();
    file.header["0.2"]["dtype"] = "F32";
    check_refused(file.text(), "0.2 is F32 [], not I32 []");
    file = new_file();
    file.header["0.2"]["shape"] = {1};
    check_refused(file.text(), "0.2 is I32 [1], not I32 []");
    file = new_file();
    file.header["__metadata__"]["2.1.1"] = "string";
    check_refused(file.text(),
                  "\"0.2\" stands for a \"string\", where \"scalar\" of a {l}.2 is expected",
                  ErrorCode::Unsupported);
    file.header["__metadata__"]["2.1.0"] = "0.0";
    file.header["__metadata__"]["2.1.1"] = "none";
    check_refused(file.text(), "layer 0 has no tokens");
}

TEST_CASE_FIXTURE(ForeignFilesFixture,
                  "layers of different lengths are read from mlx-lm's files that dkv made") {
    auto file = new_file({2, 3});
    file.header["__metadata__"]["0.dkv_n_prompt"] = "7";
    auto const cache = open(file.text());
    REQUIRE(cache);
    CHECK(cache.value()->facts().lengths == std::vector<std::uint32_t>{2, 2, 3, 3});
    CHECK(cache.value()->facts().compacted);
    // Rows of one length are counted as a whole prompt; what they were kept of is known still.
    file = new_file();
    CHECK(open(file.text()).value()->facts().is_whole());
    file.header["__metadata__"]["0.dkv_n_prompt"] = "7";
    auto const even = open(file.text());
    REQUIRE(even);
    CHECK(even.value()->facts().prompt_tokens == 2);
    CHECK(even.value()->facts().kept_of == 7);
    CHECK_FALSE(even.value()->facts().is_whole());
}

TEST_CASE("a version of mlx-lm names the format that it reads") {
    for (char const* version : {"0.31", "0.31.3", "0.4.0", "0.9"})
        CHECK(file_format("mlx-lm@" + std::string(version)) == FileFormat::MlxLm031);
    for (char const* version : {"0.32", "0.32.2", "0.100", "1.0"})
        CHECK(file_format("mlx-lm@" + std::string(version)) == FileFormat::MlxLm);
    for (char const* version : {"", "0", "x", "0.32.x", "0.32-rc", "-1.0"})
        CHECK_FALSE(file_format("mlx-lm@" + std::string(version)));
    CHECK(file_format("mlx-lm") == FileFormat::MlxLm);
    CHECK(name_of(FileFormat::MlxLm031) == "mlx-lm@0.31");
}
