#include <csignal>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "tests/cli/saved/formats/write_cache_fixture.h"

using namespace dkv;
using namespace dkv::test;

TEST_CASE_FIXTURE(WriteCacheFixture,
                  "a whole cache in dkv's own file comes back with all that was said") {
    auto request = numbers.request(path, FileFormat::Dkv);
    request.facts.tokens = {9, 8, 7, 6, 5, -1};
    request.facts.scale = 0.1f;
    request.facts.softcap = 30;
    request.facts.rope = {.theta = 1e6, .interleaved = true, .dims = 2, .scaling = "{\"a\": 1}"};
    request.facts.provenance = {{"policy", "snapkv"}, {"source", "x\"y"}};
    auto const cache = written(request);

    auto const& facts = cache->facts();
    CHECK(facts.format == FileFormat::Dkv);
    CHECK(facts.format_words == "dkv 1");
    CHECK(facts.geometry == numbers.geometry);
    CHECK(facts.model == "numbers");
    CHECK(facts.prompt_tokens == 6);
    CHECK(facts.query_rows == 2);
    CHECK(facts.scale == 0.1f);
    CHECK(facts.softcap == 30.f);
    CHECK(facts.tokens == request.facts.tokens);
    CHECK(facts.rope.theta == 1e6);
    CHECK(facts.rope.interleaved);
    CHECK(facts.rope.dims == 2);
    CHECK(facts.rope.scaling == "{\"a\": 1}");
    CHECK(facts.provenance == request.facts.provenance);
    CHECK(facts.has_checksums);
    CHECK_FALSE(facts.compacted);
    CHECK(facts.lengths == std::vector<std::uint32_t>(4, 6));
    CHECK(facts.file_bytes == std::filesystem::file_size(path));
    check_rows(*cache, kWhole);
    CHECK(element_of(cache->layer(1).value().queries, 3, 1, 2) == 1301.2f);
}

TEST_CASE_FIXTURE(WriteCacheFixture,
                  "kept rows come back with their positions, alike in each head or not") {
    for (Kept const& kept : {kUniform, kRagged}) {
        auto const cache = written(numbers.request(path, FileFormat::Dkv, kept));
        CHECK(cache->facts().compacted);
        CHECK(cache->facts().prompt_tokens == 6);
        CHECK(cache->facts().length(0, 0) == kept[0][0].size());
        CHECK(cache->facts().length(1, 1) == kept[1][1].size());
        check_rows(*cache, kept);
    }
}

TEST_CASE_FIXTURE(WriteCacheFixture,
                  "a compacted file is written again as it is, and cut further") {
    auto const first = written(numbers.request(path, FileFormat::Dkv, kRagged));
    path = folder / "again";
    WriteRequest request{.path = path, .facts = first->facts(), .layer = {}};
    request.layer = [&](std::uint32_t layer) -> Result<RowsToWrite> {
        return RowsToWrite{.source = first->layer(layer).value(), .rows = {}};
    };
    auto const again = written(request);
    check_rows(*again, kRagged);
    CHECK(test::read_text(path) == test::read_text(folder / "out"));

    request.facts.lengths = {2, 1, 0, 1};
    request.layer = [&](std::uint32_t layer) -> Result<RowsToWrite> {
        std::vector<std::vector<std::int32_t>> const rows{{1, 3, 0}, {2}};
        return RowsToWrite{.source = first->layer(layer).value(), .rows = rows[layer]};
    };
    check_rows(*written(request), {{{2, 5}, {5}}, {{}, {5}}});
}

TEST_CASE_FIXTURE(WriteCacheFixture, "identical inputs give identical bytes") {
    REQUIRE(write_cache(*backend, numbers.request(path, FileFormat::Dkv, kRagged)));
    auto const first = test::read_text(path);
    auto const parallel = make_cpu_backend(2);
    REQUIRE(write_cache(*parallel, numbers.request(path, FileFormat::Dkv, kRagged)));
    CHECK(test::read_text(path) == first);
}

TEST_CASE_FIXTURE(WriteCacheFixture, "queries are left out on request, or cut to the last") {
    auto request = numbers.request(path, FileFormat::Dkv);
    request.facts.query_rows = 1;
    CHECK(element_of(written(request)->layer(0).value().queries, 2, 0, 0) == 201);
    request.facts.query_rows = 0;
    auto const without = written(request);
    CHECK(without->facts().query_rows == 0);
    CHECK(without->facts().geometry.q_heads == 2);
}

TEST_CASE_FIXTURE(WriteCacheFixture, "sinks are written where the format is dkv's own") {
    for (auto const& kept : {kWhole, kUniform, kRagged})
        for (std::uint32_t const query_rows : {0U, 2U}) {
            auto request = numbers.request(path, FileFormat::Dkv, kept);
            request.facts.query_rows = query_rows;
            request.facts.sink_logits = {{}, {1, -2, 3, 30}};
            auto const cache = written(request);
            CHECK(cache->facts().sink_logits == request.facts.sink_logits);
            CHECK(cache->geometry().q_heads == 4);
            CHECK(cache->facts().has_checksums);
            check_rows(*cache, kept);
        }
    auto request = numbers.request(path, FileFormat::Hf);
    request.facts.sink_logits = {{}, {1, -2, 3, 30}};
    CHECK(written(request)->facts().sink_logits.empty());

    std::filesystem::remove(path);
    request = numbers.request(path, FileFormat::Dkv);
    request.facts.sink_logits = {{}, {1, -2, 3}};
    CHECK(refused(request, ErrorCode::InvalidArgument) ==
          "sink_logits has 3 values, not 4: one per query head");
    request.facts.sink_logits = {{1, 2, 3, 4}};
    CHECK(refused(request, ErrorCode::InvalidArgument) == "sinks of 1 layers, not 2");
}

TEST_CASE_FIXTURE(WriteCacheFixture,
                  "an HF export holds whole caches and, with their positions, cut ones") {
    auto const whole = written(numbers.request(path, FileFormat::Hf));
    CHECK(whole->facts().format == FileFormat::Hf);
    CHECK(whole->facts().prompt_tokens == 6);
    CHECK(whole->facts().model == "numbers");
    CHECK(whole->facts().rope.theta == 10000);
    CHECK_FALSE(whole->facts().has_checksums);
    check_rows(*whole, kWhole);
    auto const cut = written(numbers.request(path, FileFormat::Hf, kUniform));
    CHECK(cut->facts().prompt_tokens == 6);
    CHECK(cut->facts().compacted);
    check_rows(*cut, kUniform);
    std::filesystem::remove(path);
    CHECK(refused(numbers.request(path, FileFormat::Hf, kRagged)) ==
          "hf has one length for all heads of a layer, and layer 0 has heads of 1 and 4 rows: "
          "write dkv, or use a policy that keeps them alike");
}

TEST_CASE_FIXTURE(WriteCacheFixture,
                  "mlx-lm's keys are turned to the positions that they will be given") {
    struct Case {
        FileFormat format;
        bool interleaved;
    };
    for (auto const& [format, interleaved] :
         {Case{FileFormat::MlxLm, false}, Case{FileFormat::MlxLm, true},
          Case{FileFormat::MlxLm031, false}}) {
        auto request = numbers.request(path, format, kUniform);
        request.facts.provenance = {{"mlx.chat_template", "null"}, {"policy", "snapkv"}};
        request.facts.rope.interleaved = interleaved;
        auto const cache = written(request);
        CHECK(cache->facts().format == format);
        CHECK(cache->facts().model == "numbers");
        CHECK(cache->facts().provenance.at("mlx.chat_template") == "null");
        CHECK(cache->facts().provenance.at("policy") == "snapkv");
        CHECK(cache->facts().lengths == std::vector<std::uint32_t>{3, 3, 2, 2});
        // Layer 0, head 1: row 1 was at position 4. Frequencies are 1 and 1/100. Pairs turn as
        // pairs, and then stand as mlx-lm has them: dims 0, 2, 1, 3.
        auto const layer = cache->layer(0).value();
        CHECK(layer.positions.empty());
        double const x = 104.0, y = interleaved ? 104.1 : 104.2;
        CHECK(element_of(layer.keys, 1, 1, 0) ==
              doctest::Approx(x * std::cos(-3.0) - y * std::sin(-3.0)).epsilon(1e-6));
        CHECK(element_of(layer.keys, 1, 1, 2) ==
              doctest::Approx(y * std::cos(-3.0) + x * std::sin(-3.0)).epsilon(1e-6));
        double const u = interleaved ? 104.2 : 104.1, v = 104.3;
        CHECK(element_of(layer.keys, 1, 1, 3) ==
              doctest::Approx(v * std::cos(-0.03) + u * std::sin(-0.03)).epsilon(1e-6));
        CHECK(element_of(layer.keys, 0, 0, 3) == 0.3f);  // Position 0 stays 0.
        CHECK(element_of(layer.values, 1, 1, 0) == -104);
    }
}

TEST_CASE_FIXTURE(WriteCacheFixture, "keys in pairs become halves where halves are read") {
    for (auto const format : {FileFormat::Hf, FileFormat::MlxLm}) {
        CAPTURE(name_of(format));
        auto request = numbers.request(path, format);
        request.facts.rope.interleaved = true;
        auto const key = [&](std::uint32_t dim) {
            return element_of(written(request)->layer(1).value().keys, 1, 3, dim);
        };
        CHECK(key(0) == Numbered::number(1, 1, 3, 0));
        CHECK(key(1) == Numbered::number(1, 1, 3, 2));
        CHECK(key(2) == Numbered::number(1, 1, 3, 1));
        CHECK_FALSE(written(request)->facts().rope.interleaved);
        CHECK(element_of(written(request)->layer(1).value().values, 1, 3, 1) ==
              -Numbered::number(1, 1, 3, 1));

        // Two dims turn, as one pair: in either order they are the first two.
        request.facts.rope.dims = 2;
        CHECK(key(1) == Numbered::number(1, 1, 3, 1));
        request.facts.rope.dims = 0;
        // Its model turns pairs in every program.
        request.facts.rope.model_interleaved = true;
        CHECK(key(1) == Numbered::number(1, 1, 3, 1));
        request.key_order = KeyOrder::Halves;
        CHECK(key(1) == Numbered::number(1, 1, 3, 2));
    }
}

TEST_CASE_FIXTURE(WriteCacheFixture, "dkv keeps the order of the dims, and names it") {
    auto request = numbers.request(path, FileFormat::Dkv);
    request.facts.rope.interleaved = true;
    CHECK(written(request)->facts().rope.interleaved);
    CHECK(element_of(written(request)->layer(0).value().keys, 0, 0, 1) == 0.1F);
    request.facts.rope.model_interleaved = true;
    CHECK(written(request)->facts().rope.model_interleaved);

    request.key_order = KeyOrder::Halves;  // Keys and queries alike.
    auto const turned = written(request);
    CHECK_FALSE(turned->facts().rope.interleaved);
    CHECK(element_of(turned->layer(0).value().keys, 0, 0, 1) == 0.2F);
    CHECK(element_of(turned->layer(0).value().queries, 0, 0, 1) == 0.2F);

    request = numbers.request(path, FileFormat::Dkv);
    request.facts.rope = {};
    CHECK(written(request)->facts().rope.order_known);
    request.facts.rope.order_known = false;
    CHECK_FALSE(written(request)->facts().rope.order_known);
}

TEST_CASE_FIXTURE(WriteCacheFixture, "an order that is not known is no other program's") {
    for (auto const format : {FileFormat::Hf, FileFormat::MlxLm, FileFormat::LlamaSlot}) {
        auto request = numbers.request(path, format);
        request.facts.rope.order_known = false;
        CHECK(refused(request) ==
              std::string(name_of(format)) +
                  ": llama.cpp does not save in which order its keys' dims are: say --rope-theta "
                  "THETA, and --rope-interleaved where it turns adjacent pairs (Llama, Mistral, "
                  "SmolLM …; not Qwen, Gemma, Phi)");
    }
}

TEST_CASE_FIXTURE(WriteCacheFixture, "rows that may be rotated are no other program's") {
    auto request = numbers.request(path, FileFormat::Dkv);
    request.facts.stored = StoredRows{.type = "q8_0", .rotation_unknown = true};
    CHECK(refused(request) ==
          "dkv: its rows are q8_0, and only files of llama.cpp since b11549 (GGSQ 4) say whether "
          "such rows are rotated: they can be compacted as they are (--format llama-slot, "
          "llama-state), not converted. Save it again with a newer llama.cpp, or with -ctk f16 "
          "-ctv f16");
    request.facts.stored->rotation_unknown = false;
    CHECK_FALSE(written(request)->facts().stored);
}

TEST_CASE_FIXTURE(WriteCacheFixture, "layers with a sliding window are no other program's") {
    auto request = numbers.request(path, FileFormat::Dkv);
    request.facts.sliding = "15 layers with a sliding window of 512 cells, left as they are";
    CHECK(refused(request) ==
          "dkv: the cache has 15 layers with a sliding window of 512 cells, left as they are, for "
          "which only llama.cpp's own formats have a place (--format llama-slot, llama-state)");
}

TEST_CASE_FIXTURE(WriteCacheFixture, "mlx-lm's keys keep f16 and bf16, rounded to the nearest") {
    for (Dtype const dtype : {Dtype::F16, Dtype::Bf16}) {
        // 1.0 and 0 at position 2, to be turned to 0 with theta 10000: cos(-2), sin(-2).
        std::uint16_t const one = dtype == Dtype::F16 ? 0x3c00 : 0x3f80;
        std::vector<std::uint16_t> rows{0, 0, 0, 0, one, 0};
        SavedLayer layer;
        layer.keys = dense_rows(reinterpret_cast<std::byte*>(rows.data()), dtype, 1, 3, 2);
        layer.values = layer.keys;
        WriteRequest request{.path = path, .format = FileFormat::MlxLm, .facts = {}, .layer = {}};
        request.facts.geometry = {
            .layers = 1, .q_heads = 1, .kv_heads = 1, .head_dim = 2, .dtype = dtype};
        request.facts.prompt_tokens = 3;
        request.facts.lengths = {1};
        request.facts.rope.theta = 10000;
        request.layer = [&](std::uint32_t) -> Result<RowsToWrite> {
            return RowsToWrite{.source = layer, .rows = {2}};
        };
        auto const cache = written(request);
        std::uint16_t got[2];
        std::memcpy(got, cache->layer(0).value().keys.data, sizeof got);
        // cos(2) = -0.41614684, sin(-2) = -0.90929743, from numpy and torch.
        CHECK(got[0] == (dtype == Dtype::F16 ? 0xb6a9 : 0xbed5));
        CHECK(got[1] == (dtype == Dtype::F16 ? 0xbb46 : 0xbf69));
    }
}

TEST_CASE_FIXTURE(WriteCacheFixture,
                  "what mlx-lm cannot hold is refused, and nothing is left behind") {
    auto request = numbers.request(path, FileFormat::MlxLm, kUniform);
    request.facts.rope.theta = 0;
    CHECK(refused(request) ==
          "mlx-lm: the keys' positions must change, but their rope theta is unknown");
    request.facts.rope = {.theta = 10000, .scaling = "{\"rope_type\": \"yarn\"}"};
    CHECK(refused(request) ==
          "mlx-lm: the keys' positions must change, and their rope is scaled: "
          "\"{\"rope_type\": \"yarn\"}\"");
    request.facts.rope = {.theta = 10000, .dims = 6};
    CHECK(refused(request, ErrorCode::InvalidArgument) == "mlx-lm: rope over 6 dims, of rows of 4");
    // Whole, nothing is turned.
    request = numbers.request(path, FileFormat::MlxLm);
    request.facts.rope.theta = 0;
    check_rows(*written(request), kWhole);
    std::filesystem::remove(path);
    CHECK(refused(numbers.request(path, FileFormat::Vllm)) == "vllm is read, not written");
}

TEST_CASE_FIXTURE(WriteCacheFixture,
                  "rows that do not come or are not there are refused, without a file") {
    auto request = numbers.request(path, FileFormat::Dkv, kUniform);
    auto const give = [&](std::vector<std::int32_t> rows) {
        request.layer = [&, rows](std::uint32_t) -> Result<RowsToWrite> {
            return RowsToWrite{.source = numbers.layer(0), .rows = rows};
        };
    };
    auto const invalid = ErrorCode::InvalidArgument;
    give({});
    CHECK(refused(request, invalid) == "layer 0, head 0: 6 rows, where 3 are due");
    give({0, 1, 2, 3});
    CHECK(refused(request, invalid) == "layer 0, head 1: 1 rows, where 3 are due");
    give({0, 1, 2, 3, 4, 6});
    CHECK(refused(request, invalid) == "layer 0, head 1: row 6 of 6");
    give({0, 1, 2, 3, 4, -1});
    CHECK(refused(request, invalid) == "layer 0, head 1: row -1 of 6");
    give({0, 1, 2, 3, 4, 5, 5});
    CHECK(refused(request, invalid) == "layer 0, head 2: 1 rows of no head");
    request.layer = [](std::uint32_t layer) -> Result<RowsToWrite> {
        return Error{ErrorCode::Cancelled, "stopped at layer " + std::to_string(layer)};
    };
    CHECK(refused(request, ErrorCode::Cancelled) == "stopped at layer 0");
}

TEST_CASE_FIXTURE(WriteCacheFixture, "a full disk leaves no part of a cache behind") {
    Numbered large(40'000);
    auto const request = large.request(path, FileFormat::Dkv);
    pid_t const pid = ::fork();
    if (pid == 0) {
        std::signal(SIGXFSZ, SIG_IGN);
        rlimit const limit{1U << 20U, 1U << 20U};
        ::setrlimit(RLIMIT_FSIZE, &limit);
        auto const bytes = write_cache(*backend, request);
        bool const right = !bytes && bytes.error().message == path + ": File too large" &&
                           std::filesystem::is_empty(folder.path());
        ::_exit(right ? 0 : 1);
    }
    int status = 0;
    ::waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
}
