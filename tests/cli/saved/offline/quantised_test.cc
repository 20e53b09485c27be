// llama.cpp's quantised rows, compacted: the positions are those that the same numbers give as f32.
#include <cstring>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "cli/saved/offline/convert.h"
#include "tests/cli/saved/offline/compact_fixture.h"
#include "tests/support/llama_sample.h"

using namespace dkv;
using test::CompactFixture;
using test::LlamaSample;

namespace {

struct QuantisedFixture : CompactFixture {
    LlamaSample sample{.version = 4,
                       .positions = std::vector<std::int32_t>(90),
                       .layers = 3,
                       .row_elements = 64,
                       .type = 8};

    QuantisedFixture() { std::iota(sample.positions.begin(), sample.positions.end(), 0); }

    std::filesystem::path slot(std::string const& name) {
        test::write_file(folder / name, sample.text());
        return folder / name;
    }
    offline::CompactRequest cut(std::filesystem::path const& input, char const* policy) {
        auto wish = request({.name = policy, .capacity = 20, .window = 4}, input);
        wish.open.kv_heads = 2;
        wish.fill = true;
        return wish;
    }
    std::unique_ptr<SavedCache> opened(std::filesystem::path const& path,
                                       OpenOptions options = {}) {
        options.kv_heads = 2;
        auto cache = open_cache(path, options);
        REQUIRE(cache);
        return std::move(cache).value();
    }
    /// The first three numbers of a row tell it from every other.
    std::vector<std::vector<float>> keys(std::filesystem::path const& path) {
        auto const cache = opened(path);
        std::vector<std::vector<float>> rows;
        for (std::uint32_t index = 0; index < cache->geometry().layers; ++index) {
            auto const layer = cache->layer(index).value();
            for (std::uint32_t head = 0; head < 2; ++head) {
                auto const view = layer.keys_of(head);
                for (std::uint32_t row = 0; row < view.tokens; ++row) {
                    auto& numbers = rows.emplace_back(view.head_dim);
                    std::memcpy(numbers.data(), view.row(0, row), 4 * view.head_dim);
                }
            }
        }
        return rows;
    }
    /// The same cache, dequantised into dkv's own format.
    std::filesystem::path as_f32(std::filesystem::path const& input) {
        offline::ConvertRequest convert{.input = input, .output = folder / "f32"};
        convert.open.kv_heads = 2;
        convert.format = FileFormat::Dkv;
        convert.force = true;
        auto const converted = offline::convert(*backend, convert);
        REQUIRE(converted);
        return folder / "f32";
    }
};

}  // namespace

TEST_CASE_FIXTURE(QuantisedFixture,
                  "q8_0 rows keep the positions that the same numbers as f32 do") {
    for (std::uint32_t const rotation : {0U, 32U}) {
        CAPTURE(rotation);
        sample.key_rotation = sample.value_rotation = rotation;
        auto const input = slot("in");
        auto const reference = as_f32(input);
        for (char const* policy : {"knorm", "keydiff", "streamingllm"}) {
            CAPTURE(policy);
            auto wish = cut(input, policy);
            wish.force = true;
            auto const outcome = compact(wish);
            auto plain = cut(reference, policy);
            plain.output = folder / "plain";
            plain.force = true;
            compact(plain);

            CHECK(keys(folder / "out") == keys(folder / "plain"));
            CHECK(opened(folder / "out")->facts().stored->key_row_bytes == 34);
            CHECK(outcome.rows_bytes_before == 90U * 3 * 2 * 2 * 34);
            CHECK(outcome.rows_bytes_after == 20U * 3 * 2 * 2 * 34);
            CHECK(outcome.file_bytes_after == std::filesystem::file_size(folder / "out"));
        }
    }
}

TEST_CASE_FIXTURE(QuantisedFixture, "quantised rows become another format's with a note") {
    sample.key_rotation = 32;
    auto wish = cut(slot("in"), "knorm");
    wish.format = FileFormat::Dkv;

    auto const outcome = compact(wish);

    CHECK(
        outcome.notes.back() ==
        "rows were q8_0, K rotated by 32: they are f32 now, dequantised, of 256 bytes a token and "
        "head instead of 68");
    CHECK(outcome.rows_bytes_after == 20U * 3 * 2 * 256);
    CHECK_FALSE(opened(folder / "out")->facts().stored);

    sample.version = 3;
    sample.key_rotation = 0;
    // As it is stored, it can be cut; turned into another program's rows, not.
    auto const old = slot("old");
    auto within = cut(old, "knorm");
    within.output = folder / "within";
    CHECK(compact(within).rows_bytes_after == 20U * 3 * 2 * 68);
    wish.input = old;
    wish.output = folder / "other";
    CHECK(refusal(wish).find("only files of llama.cpp since b11549") != std::string::npos);
}

TEST_CASE_FIXTURE(QuantisedFixture, "what compaction leaves of checkpoints and media is said") {
    sample = {.kind = LlamaSample::PackedSlot,
              .positions = sample.positions,
              .media_words = {1, 2, 8, 0, 7, 7}};
    sample.appended = std::string("SCKP\1\0\0\0\1\0\0\0", 12) + std::string(40, '\0');
    auto wish = cut(slot("in"), "knorm");

    auto const outcome = compact(wish);

    CHECK(outcome.notes.back() ==
          "the checkpoints were left out: 1 of a server (SCKP 1), 52 bytes; they are states of the "
          "whole cache");
    CHECK(opened(folder / "out")->facts().media == "1 in the token section");

    offline::ConvertRequest convert{.input = folder / "in", .output = folder / "state"};
    convert.open.kv_heads = 2;
    convert.format = FileFormat::LlamaState;
    auto const converted = offline::convert(*backend, convert);
    REQUIRE(converted);
    REQUIRE(converted.value().notes.size() == 2);
    CHECK(converted.value().notes[0].ends_with("the format has no place for them"));
    CHECK(
        converted.value().notes[1].starts_with("the media were left out: 1 in the token section"));
    convert.format.reset();
    convert.output = folder / "same";
    auto const same = offline::convert(*backend, convert);
    REQUIRE(same);
    CHECK(same.value().notes.empty());
    CHECK(test::bytes_of_file(folder / "same") == test::bytes_of_file(folder / "in"));
}

TEST_CASE_FIXTURE(QuantisedFixture, "a checkpoint that a cut leaves true is kept, and named") {
    LlamaSample sliding{.version = 4, .positions = {88, 89}, .layers = 2, .says_rotation = true};
    sample.appended = sliding.body();
    sliding.kind = LlamaSample::Blob;
    auto const state = sliding.text();
    sample.appended += std::string("SCKP\1\0\0\0\1\0\0\0", 12);
    LlamaSample::put(sample.appended, std::int64_t{90});
    LlamaSample::put(sample.appended, std::uint64_t{0});  // Positions.
    LlamaSample::put(sample.appended, std::uint64_t{state.size()});
    sample.appended += state + std::string(16, '\0');

    auto const outcome = compact(cut(slot("in"), "knorm"));

    CHECK(
        outcome.notes.back() ==
        fmt::format("of the checkpoints (1 of a server (SCKP 1), {} bytes) the newest was kept, {} "
                    "bytes: it is of the sliding layers",
                    state.size() + 52, state.size() + 40));
    auto const kept = opened(folder / "out")->facts().sliding_checkpoint;
    REQUIRE(kept);
    CHECK(kept->tokens == 90);
    CHECK(kept->bytes == state.size() + 40);
}

TEST_CASE_FIXTURE(QuantisedFixture, "keys that are brought into another order are named") {
    auto wish = cut(make(4), "knorm");
    wish.open.rope = {.theta = 10000, .interleaved = true};
    wish.format = FileFormat::Hf;

    CHECK(compact(wish).notes.back() == "the dims of the keys were brought into halves");
}
