// The vector code of every instruction set that this machine has, not only of its best one.
#include <hwy/highway.h>
#include <hwy/targets.h>
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

}  // namespace

TEST_CASE("score is the reference on every instruction set") {
    std::mt19937 random(23);
    std::set<std::string> names;
    std::int64_t const best = hwy::SupportedTargets();
    for (std::int64_t targets = best; targets != 0; targets &= targets - 1) {
        Targets const chosen(targets);
        auto const backend = make_cpu_backend(1);
        std::string const name(backend->name());
        CAPTURE(name);
        names.insert(name);
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            for (std::uint32_t const window : {1u, 5u, 32u}) {
                CAPTURE(window);
                test::Rows queries(dtype, 6, window, 72);
                test::Rows keys(dtype, 2, 300, 72);
                queries.fill_normal(random);
                keys.fill_normal(random);
                std::vector<float> scores(2 * (300 - window));
                ScoreArgs args;
                args.queries = queries.view;
                args.keys = keys.view;
                args.scores = scores;
                args.softcap = window == 5 ? 3.f : 0.f;

                REQUIRE(backend->score(args));

                auto const want =
                    test::reference_score(queries, keys, args.reduce, 0, args.softcap);
                CHECK(test::worst_error(scores, want.scores, test::tolerance(dtype)) <= 1);
            }
        }
    }
    CHECK(names.contains(std::string(make_cpu_backend(1)->name())));
    MESSAGE(names.size(), " instruction sets");
}
