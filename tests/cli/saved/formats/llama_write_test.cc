#include "cli/saved/formats/llama_write.h"

#include <array>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>

#include <doctest/doctest.h>

#include "cli/saved/formats/llama_file.h"
#include "tests/support/llama_sample.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

namespace dkv {
namespace {

using test::LlamaSample;

/// One checkpoint, of three empty blobs.
std::string const kCheckpoint = std::string("SCKP\1\0\0\0\1\0\0\0", 12) + std::string(40, '\0');

/// A server's: a state, and the number of tokens it is of.
struct Checkpoint {
    std::int64_t tokens;
    std::string state;
};
std::string appended(std::vector<Checkpoint> const& checkpoints) {
    std::string text("SCKP\1\0\0\0", 8);
    LlamaSample::put(text, static_cast<std::uint32_t>(checkpoints.size()));
    for (auto const& [tokens, state] : checkpoints) {
        LlamaSample::put(text, tokens);
        LlamaSample::put(text, std::int32_t{0});
        LlamaSample::put(text, static_cast<std::int32_t>(tokens - 1));
        LlamaSample::put(text, std::uint64_t{state.size()});
        text += state + std::string(16, '\0');
    }
    return text;
}

std::string read_file(std::string const& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

std::uint16_t first_dim(RowsView const& view, std::uint32_t token) {
    std::uint16_t value = 0;
    std::memcpy(&value, view.row(0, token), sizeof value);
    return value;
}

struct LlamaWriteFixture {
    test::TempDir folder;
    std::unique_ptr<Backend> backend = make_cpu_backend(1);
    std::unique_ptr<SavedCache> source;
    std::string const out = folder / "out";

    std::unique_ptr<SavedCache> open(std::string const& path) const {
        auto mapped = MappedFile::open(path);
        REQUIRE(mapped);
        OpenOptions options{.kv_heads = 2};
        auto opened = open_llama_file(std::move(mapped).value(), "saved", options);
        REQUIRE(opened);
        return std::move(opened).value();
    }
    void from(LlamaSample const& sample) {
        test::write_file(folder / "in", sample.text());
        source = open(folder / "in");
    }
    /// `rows` of each layer, head after head; every one where there are none.
    WriteRequest request(std::map<std::uint32_t, std::vector<std::int32_t>> rows = {}) const {
        WriteRequest request;
        request.path = out;
        request.format = source->facts().format;
        request.facts = source->facts();
        if (!rows.empty())
            request.facts.lengths.assign(request.facts.lengths.size(),
                                         static_cast<std::uint32_t>(rows.at(0).size() / 2));
        request.source = source.get();
        request.layer = [this, rows](std::uint32_t layer) -> Result<RowsToWrite> {
            RowsToWrite to_write;
            to_write.source = DKV_TRY(source->layer(layer));
            if (!rows.empty()) to_write.rows = rows.at(layer);
            return to_write;
        };
        return request;
    }
};

TEST_CASE_FIXTURE(LlamaWriteFixture,
                  "a llama.cpp file written whole is the file that was read, byte for byte") {
    std::array const samples{
        LlamaSample{},
        LlamaSample{.transposed = true},
        LlamaSample{.version = 2, .cell_sequences = 0},
        LlamaSample{
            .kind = LlamaSample::PackedSlot, .empty_streams_before = 1, .empty_streams_after = 2},
        LlamaSample{.kind = LlamaSample::Session},
        LlamaSample{.kind = LlamaSample::Blob, .positions = {0, 2, 5}, .transposed = true},
        LlamaSample{.type = 30},
        LlamaSample{.type = 0, .element_bytes = 4},
        LlamaSample{.version = 4},
        LlamaSample{.kind = LlamaSample::Session, .says_rotation = true},
        LlamaSample{.kind = LlamaSample::Blob, .transposed = true, .says_rotation = true},
        LlamaSample{.version = 4,
                    .positions = {0, 1, 2},
                    .row_elements = 64,
                    .type = 8,
                    .key_rotation = 32,
                    .value_rotation = 32},
        LlamaSample{.kind = LlamaSample::PackedSlot, .media_words = {1, 2, 8, 0, 7, 7}},
        LlamaSample{.appended = kCheckpoint},
        LlamaSample{.appended = LlamaSample{.positions = {4, 3}, .layers = 3}.body()},
    };
    for (auto const& sample : samples) {
        CAPTURE(&sample - samples.data());
        from(sample);

        auto const written = write_llama(*backend, request());

        REQUIRE(written);
        CHECK(read_file(out) == sample.text());
        CHECK(written.value() == sample.text().size());
        CHECK(llama_bytes(request()).value() == written.value());
    }
}

TEST_CASE_FIXTURE(LlamaWriteFixture,
                  "cut cells keep their positions, and the tokens stay as they were") {
    for (bool const transposed : {false, true}) {
        CAPTURE(transposed);
        from({.kind = LlamaSample::PackedSlot, .transposed = transposed});

        auto const written =
            write_llama(*backend, request({{0, {0, 3, 4, 0, 3, 4}}, {1, {0, 3, 4, 0, 3, 4}}}));

        REQUIRE(written);
        LlamaSample expected{
            .kind = LlamaSample::PackedSlot, .positions = {0, 3, 4}, .transposed = transposed};
        CHECK(read_file(out) == expected.text());
        CHECK(written.value() == read_file(out).size());
        auto const again = open(out);
        CHECK(again->facts().compacted);
        CHECK(again->facts().prompt_tokens == 5);
        CHECK(again->facts().tokens == expected.tokens());
    }
}

TEST_CASE_FIXTURE(LlamaWriteFixture, "blocks of quantised rows are moved as they are") {
    LlamaSample sample{.version = 4,
                       .positions = {1, 2, 0, 4, 3},
                       .row_elements = 64,
                       .type = 8,
                       .key_rotation = 32};
    from(sample);

    auto const written =
        write_llama(*backend, request({{0, {0, 3, 4, 0, 3, 4}}, {1, {0, 3, 4, 0, 3, 4}}}));

    REQUIRE(written);
    sample.positions = {0, 3, 4};
    auto const expected = sample.text();
    // The tokens are those of the whole prompt, as both samples have them.
    CHECK(read_file(out) == expected);
    CHECK(llama_bytes(request()).value() > expected.size());
}

TEST_CASE_FIXTURE(LlamaWriteFixture, "layers with a sliding window are cut from no file") {
    auto const sliding = LlamaSample{.positions = {3, 4}, .layers = 3}.body();
    from({.appended = sliding + kCheckpoint});

    auto const written = write_llama(*backend, request({{0, {0, 4, 0, 4}}, {1, {0, 4, 0, 4}}}));

    REQUIRE(written);
    CHECK(read_file(out) == LlamaSample{.positions = {0, 4}, .appended = sliding}.text());
}

TEST_CASE_FIXTURE(LlamaWriteFixture, "checkpoints go along with a whole slot, and not with a cut") {
    from({.appended = kCheckpoint});
    REQUIRE(write_llama(*backend, request({{0, {0, 3, 4, 0, 3, 4}}, {1, {0, 3, 4, 0, 3, 4}}})));
    CHECK(read_file(out) == LlamaSample{.positions = {0, 3, 4}}.text());

    auto to_state = request();
    to_state.format = FileFormat::LlamaState;
    REQUIRE(write_llama(*backend, to_state));
    CHECK(read_file(out) == LlamaSample{.kind = LlamaSample::Blob}.text());
}

TEST_CASE_FIXTURE(LlamaWriteFixture,
                  "the newest checkpoint of the sliding layers goes along with a cut") {
    auto const sliding = LlamaSample{.positions = {3, 4}, .layers = 3}.body();
    auto const state = [](std::vector<std::int32_t> positions, std::uint32_t layers) {
        return LlamaSample{.kind = LlamaSample::Blob, .positions = positions, .layers = layers}
            .text();
    };
    Checkpoint const old{3, state({1, 2}, 3)};
    Checkpoint const newest{4, state({2, 3}, 3)};
    Checkpoint const of_full_layers{5, state({3, 4}, 2)};
    auto const cut_of = [&](std::vector<Checkpoint> const& checkpoints) {
        from({.appended = sliding + appended(checkpoints)});
        REQUIRE(write_llama(*backend, request({{0, {0, 4, 0, 4}}, {1, {0, 4, 0, 4}}})));
        return read_file(out);
    };
    auto const expected = [&](std::string const& checkpoints) {
        return LlamaSample{.positions = {0, 4}, .appended = sliding + checkpoints}.text();
    };

    CHECK(cut_of({old, newest, of_full_layers}) == expected(appended({newest})));
    CHECK(cut_of({newest, old}) == expected(appended({newest})));
    CHECK(cut_of({of_full_layers}) == expected(""));
    CHECK(cut_of({{4, newest.state + "x"}}) == expected(""));
}

TEST_CASE_FIXTURE(LlamaWriteFixture,
                  "a cell whose rows are of several positions stands at the largest") {
    from({});

    REQUIRE(write_llama(*backend, request({{0, {0, 1, 4, 1, 3, 4}}, {1, {0, 2, 4, 0, 1, 4}}})));

    auto const again = open(out);
    auto const layer = again->layer(0);
    REQUIRE(layer);
    auto const positions = layer.value().positions_of(0);
    CHECK(std::vector(positions.begin(), positions.end()) == std::vector{1, 3, 4});
    CHECK(first_dim(layer.value().keys_of(1), 1) == LlamaSample::element(0, 0, 3, 4));
    CHECK(first_dim(again->layer(1).value().values_of(0), 1) == LlamaSample::element(1, 1, 2, 0));
}

TEST_CASE_FIXTURE(LlamaWriteFixture,
                  "the last cell stands at the prompt's last position, where decoding goes on") {
    from({});

    REQUIRE(write_llama(*backend, request({{0, {0, 1, 0, 1}}, {1, {0, 2, 0, 2}}})));

    CHECK(open(out)->facts().prompt_tokens == 5);
    auto const positions = open(out)->layer(0).value().positions;
    CHECK(positions == std::vector{0, 4, 0, 4});
}

TEST_CASE_FIXTURE(LlamaWriteFixture,
                  "heads of unequal length are no llama.cpp file, and nothing is written") {
    from({});
    auto unequal = request();
    unequal.facts.lengths = {3, 3, 2, 3};

    auto const written = write_llama(*backend, unequal);

    REQUIRE_FALSE(written);
    CHECK(written.error().code == ErrorCode::Unsupported);
    CHECK(written.error().message ==
          "llama.cpp has one table of cells for all layers and heads, but 2 to 3 rows are kept: "
          "fill the smaller ones up (--fill), or take a policy of equal budgets");
    CHECK(llama_bytes(unequal).error().message == written.error().message);
    CHECK_FALSE(std::filesystem::exists(out));
}

TEST_CASE_FIXTURE(LlamaWriteFixture,
                  "a slot becomes a state and a state a slot, with the tokens that are known") {
    from({.kind = LlamaSample::PackedSlot});
    auto to_state = request();
    to_state.format = FileFormat::LlamaState;
    REQUIRE(write_llama(*backend, to_state));
    LlamaSample const blob{.kind = LlamaSample::Blob};
    CHECK(read_file(out) == blob.text());

    from(blob);
    auto to_slot = request();
    to_slot.format = FileFormat::LlamaSlot;
    to_slot.facts.tokens = blob.tokens();
    REQUIRE(write_llama(*backend, to_slot));
    CHECK(read_file(out) == LlamaSample{}.text());

    // A state that says its rotations becomes a slot of the version that does.
    LlamaSample const newer{.kind = LlamaSample::Blob, .says_rotation = true};
    from(newer);
    to_slot = request();
    to_slot.format = FileFormat::LlamaSlot;
    to_slot.facts.tokens = newer.tokens();
    REQUIRE(write_llama(*backend, to_slot));
    CHECK(read_file(out) == LlamaSample{.version = 4}.text());
}

TEST_CASE_FIXTURE(LlamaWriteFixture,
                  "rows of another program become a llama.cpp file only in its order of dims") {
    from({});
    auto foreign = request();
    foreign.source = nullptr;
    CHECK(write_llama(*backend, foreign)
              .error()
              .message.starts_with("llama-slot: llama.cpp does not save in which order its keys' "
                                   "dims are: say --rope-theta"));
    foreign.facts.rope.order_known = true;
    foreign.facts.provenance.clear();
    CHECK(write_llama(*backend, foreign).error().message ==
          "llama-slot: the order that llama.cpp wants of a key's dims depends on the model: say "
          "--key-order pairs (Llama, Mistral, SmolLM …) or --key-order halves (Qwen, Gemma, Phi "
          "…)");

    // What never was llama.cpp's is written as the newest.
    foreign.key_order = KeyOrder::Halves;
    REQUIRE(write_llama(*backend, foreign));
    CHECK(read_file(out) == LlamaSample{.version = 4}.text());
    foreign.key_order.reset();
    foreign.facts.rope.interleaved = true;
    REQUIRE(write_llama(*backend, foreign));
    CHECK(read_file(out) == LlamaSample{.version = 4}.text());
    // What was, through dkv's format, goes back as it came.
    foreign.facts.rope.interleaved = false;
    foreign.facts.provenance[kLlamaVersion] = "3";
    REQUIRE(write_llama(*backend, foreign));
    CHECK(read_file(out) == LlamaSample{}.text());

    foreign.source = source.get();
    foreign.key_order = KeyOrder::Halves;
    CHECK(write_llama(*backend, foreign).error().message ==
          "llama-slot: llama.cpp's own rows are moved as they are: --key-order is for what another "
          "program saved");
}

TEST_CASE_FIXTURE(LlamaWriteFixture, "halves of another program become llama.cpp's pairs") {
    from({});
    auto foreign = request();
    foreign.source = nullptr;
    foreign.facts.rope.order_known = true;
    foreign.key_order = KeyOrder::Pairs;

    REQUIRE(write_llama(*backend, foreign));

    auto const written = open(out);
    auto const keys = written->layer(0).value().keys_of(1);
    std::array<std::uint16_t, 4> dims{};
    std::memcpy(dims.data(), keys.row(0, 2), sizeof dims);
    CHECK(dims == std::array{LlamaSample::element(0, 0, 2, 4), LlamaSample::element(0, 0, 2, 6),
                             LlamaSample::element(0, 0, 2, 5), LlamaSample::element(0, 0, 2, 7)});
}

TEST_CASE_FIXTURE(LlamaWriteFixture, "a llama.cpp file keeps its dtype, and its shape") {
    from({});
    auto other = request();
    other.facts.geometry.dtype = Dtype::F32;
    CHECK(write_llama(*backend, other).error().message ==
          "llama.cpp loads rows only as it saved them: f16, not f32");

    other = request();
    other.facts.geometry.layers = 1;
    other.facts.lengths = {5, 5};
    CHECK(write_llama(*backend, other).error().message ==
          "the rows are of 1 layers, 2/2 heads, head_dim 4, f16, but the file they come from has "
          "2 layers, 2/2 heads, head_dim 4, f16");
}

TEST_CASE_FIXTURE(LlamaWriteFixture, "a layer that cannot be had leaves no llama.cpp file behind") {
    from({});
    auto failing = request();
    failing.layer = [](std::uint32_t) -> Result<RowsToWrite> {
        return Error{ErrorCode::Io, "gone"};
    };

    CHECK(write_llama(*backend, failing).error().message == "gone");

    CHECK_FALSE(std::filesystem::exists(out));
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
}

}  // namespace
}  // namespace dkv
