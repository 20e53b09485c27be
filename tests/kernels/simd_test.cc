// The vector code of every instruction set that this machine has, not only of its best one.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <hwy/highway.h>
#include <hwy/targets.h>
#include <limits>
#include <random>
#include <set>
#include <string>

#include <doctest/doctest.h>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

using namespace dkv;

namespace {

/// Chooses these instruction sets for a while. Highway's choice is the process's.
struct Targets {
    explicit Targets(std::int64_t targets) { choose(targets); }
    ~Targets() { choose(0); }
    Targets(Targets const&) = delete;
    Targets& operator=(Targets const&) = delete;

    static void choose(std::int64_t targets) {
        hwy::SetSupportedTargetsForTest(targets);
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    }
};

/// Runs `body(backend)` on the best instruction set, then on the next best, and so on.
template <class Body>
std::set<std::string> for_each_target(Body body) {
    std::set<std::string> names;
    for (std::int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
        Targets const chosen(targets);
        auto const backend = make_cpu_backend(1);
        std::string const name(backend->name());
        CAPTURE(name);
        if (names.insert(name).second) body(*backend);
    }
    return names;
}

}  // namespace

TEST_CASE("score is the reference on every instruction set") {
    std::mt19937 random(23);
    auto const names = for_each_target([&](Backend& backend) {
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            for (std::uint32_t const window : {1u, 5u, 32u}) {
                CAPTURE(window);
                test::Rows queries(dtype, 6, window, 72);
                test::Rows keys(dtype, 2, 300, 72);
                queries.fill_normal(random);
                keys.fill_normal(random);
                std::vector<float> scores(std::size_t{2} * (300 - window));
                ScoreArgs args;
                args.queries = queries.view;
                args.keys = keys.view;
                args.scores = scores;
                args.softcap = window == 5 ? 3.f : 0.f;

                REQUIRE(backend.score(args));

                auto const want =
                    test::reference_score(queries, keys, args.reduce, 0, args.softcap);
                CHECK(test::worst_error(scores, want.scores, test::tolerance(dtype)) <= 1);

                keys.set(1, 7, 7, std::nanf(""));
                REQUIRE(backend.score(args));
                CHECK(std::all_of(scores.begin(), scores.end(),
                                  [](float score) { return std::isfinite(score); }));
            }
        }
    });
    CHECK(names.contains(std::string(make_cpu_backend(1)->name())));
    MESSAGE(names.size(), " instruction sets");
}

TEST_CASE("infinite keys and those that are no numbers are that on every instruction set") {
    for_each_target([](Backend& backend) {
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            CAPTURE(name_of(dtype));
            test::Rows queries(dtype, 1, 1, 64);
            queries.fill([](auto...) { return 1.f; });
            test::Rows keys(dtype, 1, 4, 64);
            keys.fill([](auto...) { return 0.f; });
            keys.set(0, 0, 9, std::nanf(""));
            keys.set(0, 2, 9, -HUGE_VALF);
            std::array<float, 3> scores{};
            ScoreArgs args{
                .queries = queries.view, .keys = keys.view, .scores = scores, .mass = {}};
            REQUIRE(backend.score(args));
            CHECK(scores == std::array{0.f, 0.5f, 0.f});  // The window has the other half.
            keys.set(0, 1, 9, HUGE_VALF);
            REQUIRE(backend.score(args));
            CHECK(scores == std::array{0.f, 1.f, 0.f});

            float const lowest = -std::numeric_limits<float>::max();
            std::array<float, 4> norms{};
            REQUIRE(backend.key_score({keys.view, norms, 0, KeyMeasure::Norm}));
            CHECK(norms == std::array{lowest, lowest, lowest, 0.f});
        }
    });
}

TEST_CASE("select and tally are exact on every instruction set") {
    std::mt19937 random(29);
    for_each_target([&](Backend& backend) {
        for (std::uint32_t const modulus : {0xffffffffu, 1000u, 3u}) {
            std::vector<std::vector<float>> layers(3);
            for (auto& layer : layers)
                for (int i = 0; i < 2 * 333; ++i)
                    layer.push_back(
                        std::bit_cast<float>(static_cast<std::uint32_t>(random()) % modulus));
            layers[1][5] = std::nanf("");
            layers[1][6] = -0.0f;
            std::array<std::uint32_t, 2> const keep{100, 333};
            std::vector<std::int32_t> ids(433);
            REQUIRE(backend.select({layers[1], keep, ids, 333}));
            CHECK(ids == test::reference_select(layers[1], keep, 333));

            std::vector<std::span<float const>> const spans(layers.begin(), layers.end());
            std::vector<std::uint64_t> counts(6);
            REQUIRE(backend.tally({spans, counts, 2, 333, 700}));
            CHECK(counts == test::reference_tally(layers, 2, 333, 700));
        }
    });
}

TEST_CASE("pool is the reference on every instruction set") {
    std::mt19937 random(31);
    std::uniform_real_distribution<float> uniform;
    for_each_target([&](Backend& backend) {
        std::vector<float> scores(5000);
        for (float& score : scores)
            score = uniform(random);
        std::vector<float> out(scores.size());
        PoolArgs args{scores, out, 2, 2500, 7, Pool::Max};
        REQUIRE(backend.pool(args));
        auto const most = test::reference_pool(args);
        CHECK(std::equal(out.begin(), out.end(), most.begin()));
        args.pool = Pool::Avg;
        REQUIRE(backend.pool(args));
        CHECK(test::worst_error(out, test::reference_pool(args), 1e-5) <= 1);
    });
}
