#include "cli/saved/formats/llama_file.h"

#include <cmath>
#include <cstring>
#include <tuple>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/support/every_bit.h"
#include "tests/support/llama_sample.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

namespace dkv {
namespace {

using test::LlamaSample;

struct LlamaFileFixture {
    test::TempDir folder;

    Result<std::unique_ptr<SavedCache>> open(std::string const& text, OpenOptions options) const {
        auto const path = folder / "a";
        test::write_file(path, text);
        auto mapped = MappedFile::open(path);
        if (!mapped) return mapped.error();
        return open_llama_file(std::move(mapped).value(), "saved", options);
    }
    Result<std::unique_ptr<SavedCache>> open(std::string const& text) const {
        return open(text, {.kv_heads = 2});
    }
    std::string refusal(std::string const& text) const {
        auto const opened = open(text);
        REQUIRE_FALSE(opened);
        return opened.error().message;
    }
};

std::uint16_t at(RowsView const& view, std::uint32_t head, std::uint32_t token, std::uint32_t dim) {
    std::uint16_t value = 0;
    std::memcpy(&value, view.row(head, token) + dim * view.dim_stride * sizeof value, sizeof value);
    return value;
}

/// What a server appends: `count` checkpoints of three blobs.
std::string checkpoints(std::uint32_t count, std::uint32_t version = 1) {
    std::string text = "SCKP";
    LlamaSample::put(text, version);
    LlamaSample::put(text, count);
    for (std::uint32_t index = 0; index < count; ++index) {
        LlamaSample::put(text, std::int64_t{3});
        LlamaSample::put(text, std::int32_t{0});
        LlamaSample::put(text, std::int32_t{2});
        for (std::string const blob : {"state", "", "x"}) {
            LlamaSample::put(text, std::uint64_t{blob.size()});
            text += blob;
        }
    }
    return text;
}

float number(RowsView const& view, std::uint32_t head, std::uint32_t token, std::uint32_t dim) {
    float value = 0;
    REQUIRE(view.dtype == Dtype::F32);
    std::memcpy(&value, view.row(head, token) + dim * view.dim_stride * sizeof value, sizeof value);
    return value;
}

/// Every element is where its number says.
void check_rows(SavedCache const& cache, std::vector<std::int32_t> const& positions) {
    auto const& geometry = cache.geometry();
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        auto const saved = cache.layer(layer);
        REQUIRE(saved);
        for (std::uint32_t head = 0; head < geometry.kv_heads; ++head)
            for (std::uint32_t token = 0; token < positions.size(); ++token)
                for (std::uint32_t dim = 0; dim < geometry.head_dim; ++dim) {
                    auto const position = static_cast<std::uint32_t>(positions[token]);
                    auto const index = head * geometry.head_dim + dim;
                    REQUIRE(at(saved.value().keys_of(head), 0, token, dim) ==
                            LlamaSample::element(0, layer, position, index));
                    REQUIRE(at(saved.value().values_of(head), 0, token, dim) ==
                            LlamaSample::element(1, layer, position, index));
                }
    }
}

/// Opens, asks for all there is; whatever happens, nothing is read past the end.
void use(Result<std::unique_ptr<SavedCache>> const& opened) {
    if (!opened) {
        CHECK(opened.error().message.starts_with("saved: "));
        return;
    }
    auto const& cache = *opened.value();
    for (std::uint32_t layer = 0; layer < cache.geometry().layers; ++layer) {
        auto const saved = cache.layer(layer);
        REQUIRE(saved);
        CHECK(saved.value().keys.tokens == cache.facts().length(layer, 0));
        std::ignore = cache.verify(layer);
    }
}

TEST_CASE_FIXTURE(LlamaFileFixture,
                  "a llama.cpp slot's rows are seen where they lie, V either way round") {
    for (bool const transposed : {false, true}) {
        CAPTURE(transposed);
        LlamaSample const sample{.transposed = transposed};

        auto const opened = open(sample.text());

        REQUIRE(opened);
        auto const& facts = opened.value()->facts();
        CHECK(facts.format == FileFormat::LlamaSlot);
        CHECK(facts.format_words == "llama.cpp slot (GGSQ 3)");
        CHECK(facts.geometry == Geometry{2, 2, 2, 4, Dtype::F16});
        CHECK(facts.prompt_tokens == 5);
        CHECK_FALSE(facts.compacted);
        CHECK(facts.lengths == std::vector<std::uint32_t>(4, 5));
        CHECK(facts.tokens == sample.tokens());
        CHECK(facts.file_bytes == sample.text().size());
        auto const layer = opened.value()->layer(1);
        REQUIRE(layer);
        CHECK(layer.value().positions.empty());
        CHECK(layer.value().hold == nullptr);
        check_rows(*opened.value(), sample.positions);
    }
}

TEST_CASE_FIXTURE(LlamaFileFixture,
                  "cells out of order are brought into the order of their positions") {
    for (bool const transposed : {false, true}) {
        CAPTURE(transposed);
        auto const opened =
            open(LlamaSample{.positions = {3, 0, 2, 1}, .transposed = transposed}.text());

        REQUIRE(opened);
        CHECK_FALSE(opened.value()->facts().compacted);
        CHECK(opened.value()->layer(0).value().hold != nullptr);
        check_rows(*opened.value(), {0, 1, 2, 3});
    }
}

TEST_CASE_FIXTURE(LlamaFileFixture,
                  "a llama.cpp file with cells missing is compacted, and says which") {
    auto const opened = open(LlamaSample{.positions = {0, 4, 2}}.text());

    REQUIRE(opened);
    CHECK(opened.value()->facts().compacted);
    CHECK(opened.value()->facts().prompt_tokens == 5);
    auto const layer = opened.value()->layer(0);
    REQUIRE(layer);
    for (std::uint32_t head : {0U, 1U}) {
        auto const positions = layer.value().positions_of(head);
        CHECK(std::vector(positions.begin(), positions.end()) == std::vector{0, 2, 4});
    }
    check_rows(*opened.value(), {0, 2, 4});
}

TEST_CASE_FIXTURE(LlamaFileFixture,
                  "every container of llama.cpp's is known: slot, session, state, with streams") {
    auto const words = [&](LlamaSample const& sample, OpenOptions options) {
        auto const opened = open(sample.text(), options);
        REQUIRE(opened);
        check_rows(*opened.value(), sample.positions);
        return opened.value()->facts().format_words;
    };
    OpenOptions const plain{.kv_heads = 2};

    CHECK(words({.version = 2}, plain) == "llama.cpp slot (GGSQ 2)");
    CHECK(words({.version = 2, .cell_sequences = 0}, plain) == "llama.cpp slot (GGSQ 2)");
    CHECK(words({.kind = LlamaSample::PackedSlot}, plain) == "llama.cpp slot (GGSQ 3)");
    CHECK(words({.kind = LlamaSample::Session}, plain) == "llama.cpp session of llama (GGSN 10)");
    CHECK(words({.version = 4}, plain) == "llama.cpp slot (GGSQ 4)");
    CHECK(words({.kind = LlamaSample::PackedSlot, .version = 4, .transposed = true}, plain) ==
          "llama.cpp slot (GGSQ 4)");
    CHECK(words({.kind = LlamaSample::Session, .says_rotation = true}, plain) ==
          "llama.cpp session of llama (GGSN 11)");
    CHECK(words({.kind = LlamaSample::Blob}, plain) == "llama.cpp sequence state");
    // A state has no version: whether it has the rotations shows in what follows them.
    CHECK(words({.kind = LlamaSample::Blob, .says_rotation = true}, plain) ==
          "llama.cpp sequence state");
    CHECK(words({.kind = LlamaSample::Blob, .transposed = true, .says_rotation = true}, plain) ==
          "llama.cpp sequence state");
    CHECK(words({.kind = LlamaSample::Blob, .empty_streams_before = 1, .empty_streams_after = 2},
                plain) == "llama.cpp sequence state");
    CHECK(words({.kind = LlamaSample::Bare}, {.format = FileFormat::LlamaState, .kv_heads = 2}) ==
          "llama.cpp sequence state without a magic");
}

TEST_CASE_FIXTURE(
    LlamaFileFixture,
    "tokens are taken from either kind of token section, and only when they are text") {
    LlamaSample sample{.kind = LlamaSample::PackedSlot};
    CHECK(open(sample.text()).value()->facts().tokens == sample.tokens());
    CHECK(open(LlamaSample{.kind = LlamaSample::Session}.text()).value()->facts().tokens ==
          sample.tokens());
    CHECK(open(LlamaSample{.kind = LlamaSample::Blob}.text()).value()->facts().tokens.empty());

    auto text = sample.text();
    text[12 + 3 * 4 + 3] = '\xff';  // The first token's sign: a place that an image takes.
    CHECK(open(text).value()->facts().tokens.empty());
}

TEST_CASE_FIXTURE(LlamaFileFixture,
                  "what llama.cpp's file does not hold is asked for by its option") {
    auto const text = LlamaSample{}.text();

    CHECK(open(text, {}).error().message ==
          "saved: llama.cpp does not save how its rows of 8 elements divide into heads: say how "
          "many KV heads the model has (--kv-heads), or give its GGUF file (--model)");
    CHECK(open(text, {.kv_heads = 3}).error().message ==
          "saved: rows of 8 elements do not divide into 3 KV heads (--kv-heads)");
    OpenOptions options{.kv_heads = 1, .model = "m"};
    options.rope.theta = 5;
    options.rope.interleaved = true;
    auto const opened = open(text, options);
    REQUIRE(opened);
    CHECK(opened.value()->geometry().head_dim == 8);
    CHECK(opened.value()->facts().model == "m");
    CHECK(opened.value()->facts().rope.interleaved);
}

TEST_CASE_FIXTURE(LlamaFileFixture,
                  "what llama.cpp saves and dkv cannot cut is refused by its name") {
    CHECK(refusal(LlamaSample{.version = 5}.text()) ==
          "saved: GGSQ version 5: only 2 to 4 are known here");
    CHECK(refusal(LlamaSample{.version = 1}.text()) ==
          "saved: GGSQ version 1: only 2 to 4 are known here");
    auto session = LlamaSample{.kind = LlamaSample::Session}.text();
    session[4] = 9;
    CHECK(refusal(session) == "saved: GGSN version 9: only 10 to 11 are known here");
    CHECK(refusal(LlamaSample{.type = 12}.text()) ==
          "saved: K of layer 0 is q4_k: llama.cpp's types for a cache are f32, f16, bf16, q8_0, "
          "q5_1, q5_0, q4_1, q4_0 and iq4_nl");
    CHECK(refusal(LlamaSample{.row_elements = 32, .type = 8}.text()) ==
          "saved: K is q8_0, in blocks of 32, and a head has 16 dims: heads that are not whole "
          "blocks cannot be told apart. Save it with -ctk f16 -ctv f16, or check --kv-heads");
    CHECK(refusal(LlamaSample{.version = 4, .row_elements = 8, .key_rotation = 8}.text()) ==
          "saved: K is rotated by 8, and a head has 4 dims (--kv-heads)");
    CHECK(refusal(LlamaSample{.version = 4, .key_rotation = 7}.text()) ==
          "saved: the rotation of K is of order 7, not of a power of two");
    CHECK(refusal(LlamaSample{.cell_extra_bytes = 12}.text()) ==
          "saved: its cells have 2-D positions (M-RoPE)");
    CHECK(refusal(LlamaSample{.values = false}.text()) ==
          "saved: there are keys, but no values (MLA): nothing to cut per head");
    CHECK(refusal(LlamaSample{.cell_sequences = 2}.text()) ==
          "saved: cell 0 belongs to 2 sequences");

    std::string recurrent;
    for (std::uint32_t const word : {1U, 700U, 0U, 0U, 1U, 0U, 8U, 0U, 7U, 7U})
        LlamaSample::put(recurrent, word);
    CHECK(refusal(LlamaSample{}.text() + recurrent) ==
          "saved: the model is a hybrid: recurrent layers beside attention");
    CHECK(refusal(LlamaSample{}.head() + recurrent) ==
          "saved: the model is recurrent: it has no keys to cut");
}

TEST_CASE_FIXTURE(LlamaFileFixture, "lies in a llama.cpp file are found before they are believed") {
    LlamaSample const sample;
    auto const lying = [&](std::size_t offset, std::uint32_t word) {
        auto text = sample.text();
        std::memcpy(text.data() + offset, &word, sizeof word);
        return refusal(text);
    };
    std::size_t const body = sample.head().size();
    std::size_t const data = body + 8 + sample.cells().size();

    CHECK(lying(0, 0x12345678) == "saved: the magic is 0x12345678, none of llama.cpp's");
    CHECK(lying(8, 0xffffffff) ==
          "saved: the token section at byte 12 has 17179869180 bytes, but the file ends at 476");
    CHECK(lying(body, 0) == "saved: the number of streams is 0");
    CHECK(lying(body, 257) == "saved: the number of streams is 257");
    CHECK(lying(body + 4, 0xffffffff) ==
          "saved: the number of cells is 4294967295, but 436 bytes are left");
    CHECK(lying(body + 4, 0) == "saved: the sequence has no cells");
    CHECK(lying(body + 8, 0xffffffff) == "saved: cell 0 is at position -1");
    CHECK(lying(body + 8, 1) == "saved: two cells are at position 1");
    CHECK(lying(data, 2) == "saved: the flag for transposed V is 2");
    CHECK(lying(data + 4, 1025) == "saved: the number of layers is 1025");
    CHECK(lying(data + 8, 99) == "saved: K of layer 0 is of ggml type 99");
    CHECK(lying(data + 12, 15) == "saved: K of layer 0 has rows of 15 bytes, but is f16");
    CHECK(lying(data + 16, 0x80000000) ==
          "saved: K of layer 0 has rows of 4611686018427387912 elements: 5 of them do not fit in "
          "356 bytes");
    CHECK(refusal(sample.text() + "x") ==
          "saved: 1 bytes follow the last layer, and they are not checkpoints (SCKP): what they "
          "are is not known here");
    CHECK(refusal("") == "saved: the magic at byte 0 has 4 bytes, but the file ends at 0");
}

TEST_CASE_FIXTURE(LlamaFileFixture,
                  "a llama.cpp file cut short anywhere is refused, and never read past its end") {
    for (auto const& sample :
         {LlamaSample{.transposed = true}, LlamaSample{.kind = LlamaSample::PackedSlot},
          LlamaSample{.kind = LlamaSample::Session}, LlamaSample{.kind = LlamaSample::Blob},
          LlamaSample{.version = 4, .row_elements = 64, .type = 8, .key_rotation = 32},
          LlamaSample{.kind = LlamaSample::Blob, .says_rotation = true},
          LlamaSample{.kind = LlamaSample::PackedSlot, .media_words = {1, 2, 8, 0, 7, 7}}}) {
        auto const text = sample.text();
        for (std::size_t cut = 0; cut < text.size(); ++cut) {
            auto const opened = open(text.substr(0, cut));
            CAPTURE(cut);
            CHECK_FALSE(opened);
            use(opened);
        }
    }
}

TEST_CASE_FIXTURE(LlamaFileFixture, "no flipped bit of a llama.cpp file leads past its end") {
    for (auto const& sample :
         {LlamaSample{.kind = LlamaSample::PackedSlot, .transposed = true},
          LlamaSample{.kind = LlamaSample::Session},
          LlamaSample{
              .version = 4, .positions = {0, 1}, .row_elements = 64, .type = 8, .key_rotation = 32},
          LlamaSample{.positions = {0, 1}, .appended = checkpoints(2)},
          LlamaSample{.positions = {0, 1},
          .appended = LlamaSample{.positions = {1}, .layers = 1}.body()}}) {
        auto const right = sample.text();
        for (std::size_t bit = 0; bit < 8 * right.size(); bit += test::bit_step()) {
            auto text = right;
            text[bit / 8] = static_cast<char>(text[bit / 8] ^ 1 << bit % 8);
            use(open(text));
        }
    }
}

TEST_CASE_FIXTURE(LlamaFileFixture, "quantised rows are seen as f32, also out of order") {
    LlamaSample const sample{.positions = {1, 2, 0}, .row_elements = 64, .type = 8};

    auto const opened = open(sample.text());

    REQUIRE(opened);
    auto const& facts = opened.value()->facts();
    CHECK(facts.geometry == Geometry{2, 2, 2, 32, Dtype::F32});
    REQUIRE(facts.stored);
    CHECK(facts.stored->type == "q8_0");
    CHECK(facts.stored_bytes() == 2 * 34);
    CHECK(facts.stored->rotation_unknown);
    CHECK(opened.value()->mapped().empty());
    auto const layer = opened.value()->layer(1);
    REQUIRE(layer);
    for (std::uint32_t head : {0U, 1U})
        for (std::uint32_t token : {0U, 1U, 2U})
            for (std::uint32_t dim = 0; dim < 32; ++dim) {
                auto const index = head * 32 + dim;
                REQUIRE(number(layer.value().keys, head, token, dim) ==
                        LlamaSample::quant(0, 1, token, index));
                REQUIRE(number(layer.value().values, head, token, dim) ==
                        LlamaSample::quant(1, 1, token, index));
            }
    CHECK(opened.value()->verify(1));
}

TEST_CASE_FIXTURE(LlamaFileFixture, "rotated rows are turned back, each head for itself") {
    LlamaSample const sample{
        .version = 4, .positions = {0, 1}, .row_elements = 64, .type = 8, .key_rotation = 32};

    auto const opened = open(sample.text());

    REQUIRE(opened);
    CHECK(opened.value()->facts().stored->type == "q8_0, K rotated by 32");
    CHECK_FALSE(opened.value()->facts().stored->rotation_unknown);
    auto const layer = opened.value()->layer(0);
    REQUIRE(layer);
    // The first row of a Hadamard matrix is all ones.
    float sum = 0;
    for (std::uint32_t dim = 0; dim < 32; ++dim)
        sum += static_cast<float>(LlamaSample::quant(0, 0, 1, 32 + dim));
    CHECK(number(layer.value().keys, 1, 1, 0) == doctest::Approx(sum / std::sqrt(32.0F)));
    CHECK(number(layer.value().values, 1, 1, 0) == LlamaSample::quant(1, 0, 1, 32));
}

TEST_CASE_FIXTURE(LlamaFileFixture, "checkpoints behind a slot and media in it are named") {
    auto const with = open(LlamaSample{.appended = checkpoints(2)}.text());
    REQUIRE(with);
    CHECK(with.value()->facts().checkpoints == "2 of a server (SCKP 1), 104 bytes");
    check_rows(*with.value(), {0, 1, 2, 3, 4});
    LlamaSample const media{.kind = LlamaSample::PackedSlot, .media_words = {1, 2, 8, 0, 7, 7}};
    auto const images = open(media.text());
    REQUIRE(images);
    CHECK(images.value()->facts().media == "1 in the token section");
    CHECK(open(LlamaSample{}.text()).value()->facts().checkpoints.empty());

    CHECK(refusal(LlamaSample{.appended = checkpoints(1, 2)}.text()) ==
          "saved: SCKP (checkpoints) version 2: only 1 is known here");
    CHECK(refusal(LlamaSample{.appended = checkpoints(1) + "yz"}.text()) ==
          "saved: 2 bytes follow the last of 1 checkpoints, and what they are is not known here");
    auto const whole = LlamaSample{.appended = checkpoints(2)}.text();
    std::size_t const payload = LlamaSample{}.text().size();
    for (std::size_t cut = payload + 1; cut < whole.size(); ++cut)
        CHECK_FALSE(open(whole.substr(0, cut)));
}

TEST_CASE_FIXTURE(LlamaFileFixture, "layers with a sliding window are named, and not the cache's") {
    auto const sliding = LlamaSample{.positions = {3, 4}, .layers = 3}.body();
    for (auto const& appended : {sliding, sliding + checkpoints(1)}) {
        auto const opened = open(LlamaSample{.appended = appended}.text());
        REQUIRE(opened);
        auto const& facts = opened.value()->facts();
        CHECK(facts.sliding == "3 layers with a sliding window of 2 cells, left as they are");
        CHECK(facts.geometry.layers == 2);
        CHECK(facts.checkpoints.empty() == (appended == sliding));
        check_rows(*opened.value(), {0, 1, 2, 3, 4});
    }
    CHECK(open(LlamaSample{}.text()).value()->facts().sliding.empty());

    // Another prompt's: its last position is not the full layers'.
    auto const other = LlamaSample{.positions = {2, 3}}.body();
    CHECK(refusal(LlamaSample{.appended = other}.text()) ==
          fmt::format("saved: {} bytes follow the last layer, and they are not checkpoints (SCKP): "
                      "what they are is not known here",
                      other.size()));
    auto const whole = LlamaSample{.appended = sliding}.text();
    std::size_t const full = LlamaSample{}.text().size();
    for (std::size_t cut = full + 1; cut < whole.size(); ++cut)
        CHECK_FALSE(open(whole.substr(0, cut)));
}

TEST_CASE_FIXTURE(LlamaFileFixture, "the order of a key's dims is known when it is said") {
    CHECK_FALSE(open(LlamaSample{}.text()).value()->facts().rope.order_known);
    OpenOptions options{.kv_heads = 2};
    options.rope.theta = 10000;
    CHECK(open(LlamaSample{}.text(), options).value()->facts().rope.order_known);
}

TEST_CASE_FIXTURE(LlamaFileFixture, "a scale that is no number is found in quantised rows") {
    LlamaSample const sample{.row_elements = 64, .type = 8};
    auto text = sample.text();
    std::uint16_t const nan = 0x7e00;
    std::memcpy(text.data() + text.size() - 34, &nan, sizeof nan);

    auto const verified = open(text).value()->verify(1);

    REQUIRE_FALSE(verified);
    CHECK(verified.error().message == "saved: V of layer 1 has a NaN or an Inf");
}

TEST_CASE_FIXTURE(LlamaFileFixture, "NaN and Inf in a llama.cpp file are found, and named") {
    LlamaSample const sample;
    auto text = sample.text();
    std::uint16_t const inf = 0xfc00;
    std::memcpy(text.data() + text.size() - sizeof inf, &inf, sizeof inf);

    auto const opened = open(text);

    REQUIRE(opened);
    CHECK(opened.value()->verify(0));
    auto const verified = opened.value()->verify(1);
    REQUIRE_FALSE(verified);
    CHECK(verified.error().message == "saved: V of layer 1 has a NaN or an Inf");
}

}  // namespace
}  // namespace dkv
