// Two policies over a cache that lies in a file.
#include "cli/saved/offline/diff.h"

#include <random>

#include <doctest/doctest.h>

#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using offline::Diff;
using offline::Stored;

namespace {

constexpr Geometry kGeometry{.layers = 5, .q_heads = 6, .kv_heads = 2, .head_dim = 8};
constexpr std::uint32_t kTokens = 90;

struct DiffFixture {
    test::TempDir folder;
    std::unique_ptr<Backend> backend = make_cpu_backend(1);
    PolicyRequest request{.name = "", .capacity = 12, .window = 4, .kernel = 3};
    std::vector<float> sinks;  ///< [q_heads], of every layer; or none.

    std::unique_ptr<SavedCache> file(std::uint32_t query_rows = 4, char const* softcap = nullptr) {
        std::mt19937 random(3);
        std::normal_distribution<float> normal;
        auto saved =
            test::saved_cache(kGeometry, kTokens, query_rows, [&](std::uint32_t, std::string part) {
                std::size_t const rows = part == "q_window" ? kGeometry.q_heads * query_rows
                                                            : kGeometry.kv_heads * kTokens;
                std::string bytes;
                for (std::size_t i = 0; i < rows * kGeometry.head_dim; ++i) {
                    float const value = normal(random);
                    bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
                }
                return bytes;
            });
        if (!sinks.empty()) test::add_sinks(saved, kGeometry, sinks);
        if (softcap != nullptr) saved.header["__metadata__"]["softcap"] = softcap;
        test::write_file(folder / "cache", saved.text());
        auto opened = open_cache(folder / "cache");
        REQUIRE(opened);
        return std::move(opened).value();
    }

    Diff diff(SavedCache const& cache, std::string const& a, std::string const& b) {
        auto const side_a = offline::run_side(*backend, cache, a, request);
        REQUIRE(side_a);
        auto const side_b = offline::run_side(*backend, cache, b, request);
        REQUIRE(side_b);
        auto const found = offline::compare(*backend, cache, side_a.value(), side_b.value());
        REQUIRE(found);
        return found.value();
    }
    std::string refusal(SavedCache const& cache, std::string const& name) {
        auto const side = offline::run_side(*backend, cache, name, request);
        return side ? std::string() : side.error().message;
    }
};

}  // namespace

TEST_CASE_FIXTURE(DiffFixture, "a policy does not differ from itself") {
    auto const opened = file(kTokens);
    SavedCache const& cache = *opened;
    for (char const* name : {"fullkv", "streamingllm", "h2o", "snapkv", "pyramidkv", "dynamickv",
                             "knorm", "keydiff", "dynamickv-ref", "h2o-kvpress"}) {
        CAPTURE(name);
        Diff const found = diff(cache, name, name);
        CHECK(found.same());
        CHECK(found.total.shared > 0);
        CHECK(found.total.sides[0].mass.has_value() == (std::string(name) != "h2o-kvpress"));
    }
}

TEST_CASE_FIXTURE(DiffFixture, "native and published StreamingLLM differ by their sinks") {
    Diff const found = diff(*file(), "streamingllm", "streamingllm-ref");

    CHECK_FALSE(found.same());
    CHECK(found.heads == std::array{2U, 6U});
    for (offline::LayerDiff const& layer : found.layers) {
        // 4 sinks and 8 recent tokens against 8 and 4, for each of 6 query heads.
        CHECK(layer.shared == 6 * 8);
        CHECK(layer.sides[0].only_here == 6 * 4);
        CHECK(layer.sides[1].only_here == 6 * 4);
        CHECK(layer.sides[0].tokens_per_head == 12);
        CHECK(layer.sides[1].tokens_per_head == 12);
        CHECK(layer.sides[0].bytes == 12 * 2 * 2 * 8 * 4);
        CHECK(layer.sides[1].bytes == 3 * layer.sides[0].bytes);
    }
    CHECK(found.total.sides[1].bytes == 5 * found.layers[0].sides[1].bytes);
}

TEST_CASE_FIXTURE(DiffFixture,
                  "native dynamickv keeps its budget, the release twice some of its window") {
    request.r_max = 2;
    Diff const found = diff(*file(), "dynamickv", "dynamickv-ref");

    Stored const& native = found.total.sides[0];
    CHECK(native.entries == 12 * kGeometry.layers * kGeometry.kv_heads);
    CHECK(native.duplicates == 0);
    CHECK(native.bytes == kGeometry.cache_bytes(12));
    CHECK(found.total.shared + native.only_here == 3 * native.entries);
    Stored const& published = found.total.sides[1];
    CHECK(found.total.shared + published.only_here + published.duplicates == published.entries);
    for (auto const& side : found.total.sides) {
        REQUIRE(side.mass);
        CHECK((*side.mass > 0 && *side.mass <= 1));
    }
}

TEST_CASE_FIXTURE(DiffFixture,
                  "without queries the mass is unknown, and query-free policies still run") {
    Diff const found = diff(*file(0), "knorm", "keydiff");
    CHECK(found.total.sides[0].entries == 12 * 5 * 2);
    CHECK_FALSE(found.total.sides[0].mass);
    CHECK_FALSE(found.same());
}

TEST_CASE_FIXTURE(DiffFixture, "sinks take their share on both sides of a comparison") {
    Diff const plain = diff(*file(), "snapkv", "snapkv-ref");
    sinks = {-5, 0, 30, 3, 2, 5};
    Diff const found = diff(*file(), "snapkv", "snapkv-ref");
    REQUIRE(found.total.sides[0].mass);
    CHECK(*found.total.sides[0].mass > *plain.total.sides[0].mass);
    // Native: the heads of a group share their tokens, which a sink of 30 has no say in.
    CHECK(found.total.shared != plain.total.shared);
}

TEST_CASE_FIXTURE(DiffFixture, "a side that cannot run says why") {
    auto const opened = file();
    SavedCache const& cache = *opened;
    CHECK(refusal(cache, "h2o") ==
          "h2o needs the queries of the last 90 tokens, and the file has 4");
    CHECK(refusal(cache, "h2o-kvpress") ==
          "h2o-kvpress needs the queries of the last 90 tokens, and the file has 4");
    CHECK(refusal(*file(0), "snapkv") ==
          "snapkv needs the queries of the last 4 tokens, and the file has none");
    CHECK(refusal(*file(0), "streamingllm-ref") ==
          "streamingllm-ref needs the queries of the last 1 tokens, and the file has none");
    CHECK(refusal(*file(4, "50"), "snapkv-ref") ==
          "snapkv-ref knows no scale of 0 and no soft cap of 50");
    CHECK(refusal(cache, "snapkv-reff").starts_with("no policy is called \"snapkv-reff\""));
    request.capacity.reset();
    request.keep_mass = 0.9;
    CHECK(refusal(cache, "snapkv-ref") ==
          "keep_mass is none of snapkv-ref's parameters: give a capacity");
    request.keep_mass.reset();
    request.r_max = 1e-3;
    request.capacity = 12;
    CHECK(refusal(cache, "dynamickv-ref") == "r_max is 0.001, not a number of at least 1");
}

TEST_CASE_FIXTURE(DiffFixture, "a size may be a share or bytes") {
    request.capacity.reset();
    request.ratio = 0.2;
    CHECK(diff(*file(), "snapkv", "snapkv-kvpress").capacity == 18);
    request.ratio.reset();
    request.bytes = kGeometry.cache_bytes(20);
    CHECK(diff(*file(), "snapkv", "snapkv-kvpress").total.sides[0].bytes ==
          kGeometry.cache_bytes(20));
}
