// A saved cache in, a smaller one out.

#include "protocol/base/version.h"
#include "tests/cli/saved/offline/compact_fixture.h"

using namespace dkv;
using test::bytes_of_file;
using test::CompactFixture;
using test::kEveryPolicy;

namespace fs = std::filesystem;

TEST_CASE_FIXTURE(CompactFixture,
                  "what is kept is what the live job packs, to the token and the byte") {
    std::mt19937 random(9);
    auto const between = [&](std::uint32_t least, std::uint32_t most) {
        return least + static_cast<std::uint32_t>(random() % (most - least + 1));
    };
    for (int round = 0; round < 6; ++round) {
        geometry = {.layers = between(1, 7),
                    .q_heads = 0,
                    .kv_heads = between(1, 3),
                    .head_dim = 2 * between(1, 9)};
        geometry.q_heads = geometry.kv_heads * between(1, 3);
        tokens = between(40, 150);
        auto const input = make(tokens, static_cast<unsigned>(round));
        auto const cache = open_cache(input);
        REQUIRE(cache);
        std::uint32_t const window = between(1, 9);
        for (char const* policy : kEveryPolicy) {
            auto wish = request({.name = policy,
                                 .capacity = window + between(4, 25),
                                 .window = window,
                                 .r_max = 3.0,
                                 .update_interval = 2,
                                 .granularity = static_cast<Granularity>(round % 3)},
                                input);
            wish.force = true;
            auto const outcome = compact(wish);
            CAPTURE(in_words(outcome.params));
            CAPTURE(describe(geometry));

            auto const made = open_cache(wish.output);
            REQUIRE(made);
            CHECK(rows_of(*cache.value(), *made.value()) == live(*cache.value(), outcome.params));
            CHECK(made.value()->facts().lengths == outcome.lengths);
            CHECK(std::accumulate(outcome.lengths.begin(), outcome.lengths.end(), 0U) ==
                  geometry.layers * geometry.kv_heads * *wish.policy.capacity);
            CHECK(outcome.file_bytes_after == fs::file_size(wish.output));
            CHECK(outcome.file_bytes_before == fs::file_size(input));
        }
    }
}

TEST_CASE_FIXTURE(CompactFixture,
                  "a file with sinks is cut as the live job cuts it, and keeps them") {
    auto const plain = make(tokens, 3, "plain");
    sinks = {-5, 0, 30, 3, 2, 5};
    auto const input = make(tokens);
    auto const cache = open_cache(input).value();
    for (char const* policy : kEveryPolicy) {
        CAPTURE(policy);
        auto wish = request({.name = policy, .capacity = 20, .window = 4, .r_max = 3.0}, input);
        wish.force = true;
        auto const outcome = compact(wish);
        auto const made = open_cache(wish.output).value();
        auto const kept = rows_of(*cache, *made);
        CHECK(kept == live(*cache, outcome.params));
        CHECK(made->facts().sink_logits == cache->facts().sink_logits);
        CHECK(made->geometry().q_heads == 6);

        bool const by_attention =
            std::string("auto h2o snapkv pyramidkv dynamickv").find(policy) != std::string::npos;
        auto without = request({.name = policy, .capacity = 20, .window = 4, .r_max = 3.0}, plain);
        without.force = true;
        compact(without);
        CHECK((rows_of(*cache, *open_cache(without.output).value()) != kept) == by_attention);
    }
    for (double const share : {0.8, 0.97}) {
        auto wish = request({.name = "snapkv", .window = 4, .keep_mass = share}, input);
        wish.force = true;
        auto const outcome = compact(wish);
        auto const kept = rows_of(*cache, *open_cache(wish.output).value());
        for (std::uint32_t layer = 0; layer < geometry.layers; ++layer)
            CHECK(double{outcome.mass_kept[layer]} ==
                  doctest::Approx(mass(*cache, layer, 4, kept[layer])).epsilon(1e-4));
    }
}

TEST_CASE_FIXTURE(CompactFixture, "bytes are the file's: never more, and hardly less") {
    tokens = 400;
    auto const input = make(tokens);
    for (char const* policy : kEveryPolicy)
        for (std::uint64_t const bytes : {30000U, 61000U, 128123U, 200000U}) {
            auto wish = request({.name = policy, .window = 8, .bytes = bytes}, input);
            wish.force = true;
            auto const outcome = compact(wish);
            CAPTURE(policy);
            CAPTURE(bytes);
            CHECK(fs::file_size(wish.output) == outcome.file_bytes_after);
            CHECK(outcome.file_bytes_after <= bytes);
            CHECK(static_cast<double>(outcome.file_bytes_after) >=
                  0.98 * static_cast<double>(bytes));
        }
}

TEST_CASE_FIXTURE(CompactFixture, "a share of the attention is in every layer of the output") {
    auto const input = make(tokens);
    auto const cache = open_cache(input).value();
    for (char const* policy : {"auto", "snapkv", "h2o", "dynamickv"})
        for (double const share : {0.5, 0.8, 0.97}) {
            auto wish = request({.name = policy, .window = 4, .keep_mass = share}, input);
            wish.force = true;
            auto const outcome = compact(wish);
            auto const kept = rows_of(*cache, *open_cache(wish.output).value());
            for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
                CAPTURE(policy);
                double const measured = mass(*cache, layer, 4, kept[layer]);
                CHECK(measured >= share - 1e-6);
                CHECK(double{outcome.mass_kept[layer]} == doctest::Approx(measured).epsilon(1e-4));
                CHECK(double{outcome.mass_kept[layer]} >= share);
            }
        }
}

TEST_CASE_FIXTURE(CompactFixture, "the same request gives the same bytes, and is not done twice") {
    auto wish = request({.name = "", .capacity = 20, .window = 4}, make(4));
    auto const first = compact(wish);
    CHECK(first.params.name == "auto");
    CHECK_FALSE(first.already_there);
    auto const bytes = bytes_of_file(wish.output);

    auto const again = compact(wish);
    CHECK(again.already_there);
    CHECK(again.lengths == first.lengths);
    CHECK(again.file_bytes_after == first.file_bytes_after);
    CHECK(bytes_of_file(wish.output) == bytes);

    wish.force = true;
    CHECK_FALSE(compact(wish).already_there);
    CHECK(bytes_of_file(wish.output) == bytes);
}

TEST_CASE_FIXTURE(CompactFixture,
                  "another request, or another prompt, does not pass for what is there") {
    auto const input = make(4);
    auto wish = request({.name = "snapkv", .capacity = 20, .window = 4}, input);
    compact(wish);
    std::string const refused =
        "already_exists: out: there is a file of this name already, and it does not say that it "
        "was made of this request; --force writes over it";

    wish.policy.capacity = 21;
    CHECK(refusal(wish) == refused);
    wish.policy.capacity = 20;
    wish.keep_queries = true;
    CHECK(refusal(wish) == refused);
    wish.keep_queries = false;
    CHECK(refusal(wish) == "");
    make(4, 4);
    CHECK(refusal(wish) == refused);
}

TEST_CASE_FIXTURE(CompactFixture, "the file says what it went through") {
    auto wish = request({.name = "dynamickv", .capacity = 20, .window = 4}, make(4));
    wish.keep_queries = true;
    compact(wish);

    auto const made = open_cache(wish.output).value();
    auto provenance = made->facts().provenance;
    CHECK(provenance["policy"] == "dynamickv");
    CHECK(provenance["capacity"] == "20");
    CHECK(provenance["window"] == "4");
    CHECK(provenance["pool"] == "max");
    CHECK(provenance["r_max"] == "10");
    CHECK(provenance["granularity"] == "layer");
    CHECK(provenance["source"] == "cache");
    CHECK(provenance["source_format"] == "dkv");
    CHECK(provenance["dkv"] == kVersion);
    CHECK(made->facts().query_rows == 4);
    CHECK(made->facts().compacted);
    CHECK(made->facts().has_checksums);
    CHECK(made->facts().model == "a small one");
    CHECK(made->facts().prompt_tokens == 90);
}

TEST_CASE_FIXTURE(CompactFixture, "a dry run knows the size and writes nothing") {
    for (char const* policy : kEveryPolicy) {
        auto wish = request({.name = policy, .capacity = 20, .window = 4}, make(tokens));
        wish.dry_run = true;
        auto const dry = compact(wish);
        CHECK(files() == std::vector<std::string>{"cache"});
        wish.dry_run = false;
        auto const wet = compact(wish);
        CHECK(dry.lengths == wet.lengths);
        CHECK(dry.file_bytes_after == fs::file_size(wish.output));
        fs::remove(wish.output);
    }
}

TEST_CASE_FIXTURE(CompactFixture, "a prompt that is not longer than the capacity is kept whole") {
    auto const input = make(0);
    auto const wish = request({.name = "snapkv", .capacity = 90, .window = 4}, input);
    auto const outcome = compact(wish);
    CHECK(outcome.kept_whole);
    CHECK(outcome.lengths == std::vector<std::uint32_t>(10, 90));
    CHECK(outcome.rows_bytes_after == outcome.rows_bytes_before);
    auto const made = open_cache(wish.output).value();
    CHECK_FALSE(made->facts().compacted);
    auto const a = open_cache(input).value()->layer(4).value();
    auto const b = made->layer(4).value();
    CHECK(std::memcmp(a.values.row(0, 0), b.values.row(0, 0), 2 * 90 * geometry.row_bytes()) == 0);
}
