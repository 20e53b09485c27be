#include "cli/saved/reference/baselines_ref.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include <doctest/doctest.h>

#include "tests/support/results.h"

using namespace dkv;
using namespace dkv::reference;

namespace {

using Budgets = std::vector<std::uint32_t>;
using Lists = std::vector<std::vector<std::int32_t>>;

ClusterParams cluster(std::uint32_t layers, std::uint32_t tokens, std::uint32_t capacity) {
    return {.layers = layers, .prompt_tokens = tokens, .capacity = capacity, .window = 8};
}

Budgets value_of(Result<LayerBudgets> const& budgets) {
    REQUIRE(budgets);
    REQUIRE(budgets.value());
    return *budgets.value();
}

}  // namespace

TEST_CASE("snapkv-ref keeps base in every layer, and shorter prompts whole") {
    CHECK(value_of(snapkv_ref_budgets(cluster(3, 28, 28))) == Budgets{20, 20, 20});

    auto const shorter = snapkv_ref_budgets(cluster(3, 27, 28));
    REQUIRE(shorter);
    CHECK_FALSE(shorter.value());
}

TEST_CASE("pyramidkv-ref steps down by whole tokens and overspends") {
    // base 40: min 2, max 78, step 76 / 3 = 25. 162 tokens where the budget is 160.
    CHECK(value_of(pyramidkv_ref_budgets(cluster(4, 1000, 48))) == Budgets{78, 53, 28, 3});
    // base 120, 32 layers: min 6, max 234, step 228 / 31 = 7; 11 tokens are left at the end.
    auto const budgets = value_of(pyramidkv_ref_budgets(cluster(32, 4096, 128)));
    CHECK(budgets.front() == 234);
    CHECK(budgets.back() == 17);
    CHECK(std::accumulate(budgets.begin(), budgets.end(), 0u) == 4016);  // 32 * 120 is 3840.
}

TEST_CASE("pyramidkv-ref flattens where the first layer would exceed the prefix") {
    // base 40, prefix 75: max 75, min 5, step 70 / 3 = 23.
    CHECK(value_of(pyramidkv_ref_budgets(cluster(4, 83, 48))) == Budgets{75, 52, 29, 6});
}

TEST_CASE("pyramidkv-ref keeps short prompts whole and gives longer ones base everywhere") {
    auto const shorter = pyramidkv_ref_budgets(cluster(4, 47, 48));
    REQUIRE(shorter);
    CHECK_FALSE(shorter.value());

    CHECK(value_of(pyramidkv_ref_budgets(cluster(4, 48, 48))) == Budgets{40, 40, 40, 40});
    CHECK(value_of(pyramidkv_ref_budgets(cluster(4, 79, 48))) == Budgets{40, 40, 40, 40});
    CHECK(value_of(pyramidkv_ref_budgets(cluster(4, 80, 48))) == Budgets{72, 51, 30, 9});
}

TEST_CASE("the published clusters refuse what they cannot divide") {
    CHECK(snapkv_ref_budgets(cluster(0, 100, 48)).error().message == "layers is 0");
    CHECK(snapkv_ref_budgets(cluster(4, 100, 8)).error().message ==
          "capacity is 8, not above window 8");
    CHECK(pyramidkv_ref_budgets(cluster(1, 100, 48)).error().message ==
          "layers is 1, and the published step divides by zero");
    auto params = cluster(4, 100, 48);
    params.beta = 0;
    CHECK(pyramidkv_ref_budgets(params).error().message == "beta is 0");
    params.window = 0;
    CHECK(pyramidkv_ref_budgets(params).error().message == "window is 0");
}

TEST_CASE("select_ref lists each head's best by score, then the window") {
    std::array const pooled{0.1f, 0.9f, 0.5f, 0.7f,   // head 0
                            0.4f, 0.3f, 0.2f, 0.1f};  // head 1

    auto const lists = select_ref(pooled, 2, 2, 3);

    REQUIRE(lists);
    CHECK(lists.value() == Lists{{1, 3, 4, 5, 6}, {0, 1, 4, 5, 6}});
    CHECK(select_ref(pooled, 2, 5, 3).error().message == "budget is 5 of a prefix of 4 tokens");
    CHECK(select_ref(pooled, 3, 1, 3).error().message ==
          "8 scores are not 3 heads of equal length");
}

TEST_CASE("snapkv-kvpress ranks the window among the prefix, with the largest score of any head") {
    std::array const pooled{0.1f, 0.9f, 0.5f, 0.7f,   // head 0
                            0.4f, 0.3f, 0.2f, 0.1f};  // head 1

    auto lists = select_snapkv_kvpress(pooled, 2, 2, 0.5);  // 3 of 6

    REQUIRE(lists);
    for (auto& list : lists.value())
        std::ranges::sort(list);
    CHECK(lists.value() == Lists{{1, 4, 5}, {0, 4, 5}});
}

TEST_CASE("snapkv-kvpress truncates the number kept, and keeps at least one") {
    std::array const pooled{0.1f, 0.9f, 0.5f, 0.7f};

    CHECK(select_snapkv_kvpress(pooled, 1, 3, 0.3).value().front().size() == 4);  // int(4.9)
    CHECK(select_snapkv_kvpress(pooled, 1, 3, 0.99).value().front().size() == 1);
    CHECK(select_snapkv_kvpress(pooled, 1, 3, 0).value() == Lists{{0, 1, 2, 3, 4, 5, 6}});
}

TEST_CASE("snapkv-kvpress refuses a ratio that is none and a prompt without prefix") {
    std::array const pooled{0.1f};

    CHECK(select_snapkv_kvpress(pooled, 1, 3, 1).error().message ==
          "compression_ratio is 1, not in [0, 1)");
    CHECK(select_snapkv_kvpress(pooled, 1, 3, NAN).error().code == ErrorCode::InvalidArgument);
    CHECK(select_snapkv_kvpress(pooled, 1, 0, 0.5).error().message == "window is 0");
    CHECK(select_snapkv_kvpress({}, 1, 3, 0.5).error().message ==
          "the prompt is no longer than the window");
}
