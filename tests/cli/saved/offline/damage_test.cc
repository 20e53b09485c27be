// The number that ranks a sweep's points: attention that is lost, heads weighted by a profile.
#include "cli/saved/offline/damage.h"

#include <numeric>

#include <doctest/doctest.h>

#include "cli/saved/offline/sweep.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using offline::SweepRow;

namespace {

constexpr Geometry kJudged{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 8};
constexpr std::uint32_t kJudgedTokens = 60;

struct DamageFixture {
    test::TempDir folder;
    std::unique_ptr<Backend> backend = make_cpu_backend(1);
    std::shared_ptr<Profile> profile = std::make_shared<Profile>();

    DamageFixture() {
        profile->name = "tried";
        profile->layers = kJudged.layers;
        profile->heads = 1;
        profile->weights = {1, 1, 1};
        // Weights of zeros: later text is said to attend to every token alike.
        auto surrogate = std::make_shared<Surrogate>();
        surrogate->kv_heads = kJudged.kv_heads;
        surrogate->head_dim = kJudged.head_dim;
        surrogate->frequencies = {1.0F, 0.5F};
        surrogate->weights.assign(
            std::size_t{kJudged.layers} * kJudged.kv_heads * surrogate->features(), 0);
        profile->surrogate = surrogate;
    }

    std::unique_ptr<SavedCache> file(std::uint32_t query_rows, bool order_known = true) {
        auto saved = test::random_cache(5, kJudged, kJudgedTokens, query_rows);
        saved.header["__metadata__"]["rope.theta"] = "10000";
        saved.header["__metadata__"]["rope.interleaved"] = order_known ? "false" : "unknown";
        test::write_file(folder / "cache", saved.text());
        auto opened = open_cache(folder / "cache");
        REQUIRE(opened);
        return std::move(opened).value();
    }

    SweepRow judged(SavedCache const& cache, char const* policy, std::uint32_t capacity) {
        PolicyRequest const point{
            .name = policy, .capacity = capacity, .window = 4, .profile = profile};
        auto rows = offline::sweep(*backend, cache, std::span(&point, 1), false);
        REQUIRE(rows);
        REQUIRE(rows.value()[0].error == "");
        return std::move(rows).value()[0];
    }
};

double mean_of(std::vector<double> const& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

TEST_CASE_FIXTURE(DamageFixture,
                  "damage is the mean of what the window and later text lose in each layer") {
    auto const row = judged(*file(4), "snapkv", 24);
    REQUIRE(row.damage.size() == kJudged.layers);
    for (std::size_t layer = 0; layer < kJudged.layers; ++layer) {
        double const later = 1 - 24.0 / kJudgedTokens;
        CHECK(row.damage[layer] ==
              doctest::Approx((1 - double{row.mass_kept[layer]} + later) / 2).epsilon(1e-5));
    }
    CHECK(judged(*file(4), "snapkv", 40).damage[0] < row.damage[0]);
    CHECK(judged(*file(4), "snapkv", kJudgedTokens).damage ==
          std::vector<double>(kJudged.layers, 0));
}

TEST_CASE_FIXTURE(DamageFixture, "a layer counts by its weight in the profile") {
    auto const alike = judged(*file(4), "snapkv", 24);
    profile->weights = {0, 2, 1};
    auto const weighted = judged(*file(4), "snapkv", 24);
    CHECK(weighted.damage[0] == 0);
    CHECK(weighted.damage[1] == doctest::Approx(2 * alike.damage[1]));
    CHECK(weighted.damage[2] == doctest::Approx(alike.damage[2]));
    CHECK(mean_of(weighted.damage) == doctest::Approx((2 * alike.damage[1] + alike.damage[2]) / 3));
}

TEST_CASE_FIXTURE(DamageFixture,
                  "what is not known is left out of damage, and nothing makes none") {
    double const later = 1 - 24.0 / kJudgedTokens;
    CHECK(judged(*file(0), "streamingllm", 24).damage[0] == doctest::Approx(later));

    auto const window =
        judged(*file(4, false), "snapkv", 24);  // Keys that a surrogate cannot read.
    CHECK(window.damage[0] == doctest::Approx(1 - double{window.mass_kept[0]}).epsilon(1e-5));

    profile->surrogate = nullptr;
    CHECK(judged(*file(4), "snapkv", 24).damage[0] == doctest::Approx(window.damage[0]));
    CHECK(judged(*file(0), "streamingllm", 24).damage.empty());
    profile = nullptr;
    CHECK(judged(*file(4), "snapkv", 24).damage.empty());
}
