#include "cli/saved/reference/forms.h"

#include <numeric>
#include <random>

#include <doctest/doctest.h>

#include "cli/saved/reference/baselines_ref.h"
#include "sidecar/policy/policy.h"
#include "tests/support/results.h"

using namespace dkv;
using namespace dkv::reference;

namespace {

constexpr Geometry kGeometry{.layers = 4, .q_heads = 4, .kv_heads = 2, .head_dim = 4};
constexpr std::uint32_t kTokens = 60;

PolicyParams params_of(std::string_view form) {
    return resolve({.name = std::string(form.substr(0, form.find('-'))),
                    .capacity = 12,
                    .window = 4,
                    .kernel = 3})
        .value();
}

/// Every layer through a form.
Result<std::vector<std::vector<HeadList>>> run(std::string_view name,
                                               PolicyParams const& params,
                                               std::uint32_t tokens = kTokens) {
    auto const form = DKV_TRY(make_form(name, params, kGeometry, tokens));
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (std::uint32_t layer = 0; layer < kGeometry.layers; ++layer) {
        std::uint32_t const rows = std::max(form->queries_wanted(), 1U);
        std::vector<float> queries(kGeometry.q_heads * rows * kGeometry.head_dim);
        std::vector<float> keys(kGeometry.kv_heads * tokens * kGeometry.head_dim);
        for (auto* const list : {&queries, &keys})
            for (float& value : *list)
                value = normal(random);
        DKV_TRY(form->add_layer({.queries = queries,
                                 .keys = keys,
                                 .q_heads = kGeometry.q_heads,
                                 .kv_heads = kGeometry.kv_heads,
                                 .query_rows = rows,
                                 .tokens = tokens,
                                 .head_dim = kGeometry.head_dim,
                                 .dtype = Dtype::F32}));
    }
    return form->stored();
}

}  // namespace

TEST_CASE("every form stores lists for every layer, per query head or per KV head") {
    for (std::string_view const name : reference_forms()) {
        CAPTURE(name);
        auto const stored = run(name, params_of(name));
        REQUIRE(stored);
        CHECK(stored.value().size() == kGeometry.layers);
        bool const press = name.find("kvpress") != name.npos;
        std::size_t entries = 0;
        for (auto const& layer : stored.value()) {
            CHECK(layer.size() == (press ? kGeometry.kv_heads : kGeometry.q_heads));
            for (auto const& list : layer) {
                entries += list.size();
                for (std::int32_t const position : list)
                    CHECK((position >= 0 && position < std::int32_t{kTokens}));
                if (!press) CHECK(list.back() == kTokens - 1);
            }
        }
        if (name != "pyramidkv-ref" && name != "dynamickv-ref")
            CHECK(entries == 12 * kGeometry.layers * stored.value().front().size());
    }
}

TEST_CASE("streamingllm-ref keeps the first and the last tokens") {
    auto const list = run("streamingllm-ref", params_of("streamingllm-ref")).value()[1][3];
    CHECK(list == HeadList{0, 1, 2, 3, 4, 5, 6, 7, 56, 57, 58, 59});
    CHECK(run("streamingllm-ref", params_of("streamingllm-ref"), 11).value()[0][0].size() == 11);
}

TEST_CASE("h2o-kvpress divides by the queries that see a token, and sets no window apart") {
    // One group of two query heads over four tokens: the mean of the two, over 4, 3, 2 and 1.
    std::vector<float> const sums{2, 1.5f, 1, 0.2f, 2, 0.6f, 1, 0.4f};
    auto const lists = select_h2o_kvpress(sums, 2, 1, Dtype::F32, 0.5);
    REQUIRE(lists);
    CHECK(lists.value() == std::vector<std::vector<std::int32_t>>{{0, 2}});
    CHECK(select_h2o_kvpress(sums, 2, 1, Dtype::F32, 0).value()[0].size() == 4);
    CHECK(select_h2o_kvpress(sums, 2, 1, Dtype::F32, 1).error().message ==
          "compression_ratio is 1, not in [0, 1)");
    CHECK(select_h2o_kvpress(sums, 2, 3, Dtype::F32, 0.5).error().message ==
          "q_heads is 2, no multiple of kv_heads 3");
}

TEST_CASE("a form that cannot be is refused") {
    auto params = params_of("snapkv-ref");
    CHECK(run("snapkv", params).error().message ==
          "no reference form is called \"snapkv\"; there are dynamickv-ref, snapkv-ref, "
          "pyramidkv-ref, streamingllm-ref, snapkv-kvpress, h2o-kvpress");
    params.beta = 1.5;
    CHECK(run("pyramidkv-ref", params).error().message ==
          "beta is 1.5, and the published code takes whole numbers");
    params.capacity = 4;
    CHECK(run("snapkv-ref", params).error().message == "capacity is 4, not above window 4");
}
