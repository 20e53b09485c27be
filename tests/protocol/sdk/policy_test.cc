// What an engine wishes, on its way to the sidecar.
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/protocol/sdk/harness.h"

using namespace dkv;
using namespace dkv::test;

TEST_CASE("a policy's every field reaches the sidecar, and a profile with its weights") {
    Harness harness;
    dkv_policy policy;
    dkv_policy_init(&policy);
    double const weights[] = {1, 2.5, 3, 4};
    auto profile = sized<dkv_profile>();
    profile.name = "tiny";
    profile.layers = 2;
    profile.heads = 2;
    profile.weights = weights;
    profile.alpha = 0.5;
    profile.floor = 0.25;
    profile.kernel = 21;
    auto surrogate = sized<dkv_surrogate>();
    std::vector<std::uint16_t> const bf16(2 * 2 * 9, 0x3fc0);
    surrogate.kv_heads = 2;
    surrogate.head_dim = 1;
    surrogate.weights = bf16.data();
    surrogate.interleaved = 1;
    profile.surrogate = &surrogate;
    policy.granularity = "layer-head";
    policy.score_norm = "layer-nosink";
    policy.query_norm = 0;
    policy.ratio = 0.25;
    policy.preset = "paper";
    policy.profile = &profile;

    REQUIRE(harness.open(1, &policy) == DKV_OK);

    auto const request = harness.sidecar->wait_for(wire::Body::OpenSession);
    REQUIRE(request);
    auto const& wish = *request->body.AsOpenSession()->policy;
    CHECK(wish.granularity.value() == wire::Granularity::LayerHead);
    CHECK(wish.score_norm.value() == wire::ScoreNorm::LayerNoSink);
    CHECK(wish.query_norm.value() == false);
    CHECK(wish.ratio.value() == 0.25);
    CHECK(!wish.bytes.has_value());
    CHECK(!wish.keep_mass.has_value());
    CHECK(wish.preset == "paper");
    REQUIRE(wish.profile);
    CHECK(wish.profile->name == "tiny");
    CHECK(wish.profile->layers == 2);
    CHECK(wish.profile->heads == 2);
    CHECK(wish.profile->weights == std::vector<double>{1, 2.5, 3, 4});
    CHECK(wish.profile->alpha == 0.5);
    CHECK(wish.profile->floor == 0.25);
    CHECK(wish.profile->kernel == 21);
    REQUIRE(wish.profile->surrogate);
    CHECK(wish.profile->surrogate->kv_heads == 2);
    CHECK(wish.profile->surrogate->head_dim == 1);
    CHECK(wish.profile->surrogate->weights == std::vector<std::uint16_t>(2 * 2 * 9, 0x3fc0));
    CHECK(wish.profile->surrogate->frequencies.empty());
    CHECK(wish.profile->surrogate->interleaved);
}

TEST_CASE("a wish without a name leaves the sidecar's policy and its parameters") {
    Harness harness;
    dkv_policy policy;
    dkv_policy_init(&policy);
    policy.granularity = "layer-head";

    REQUIRE(harness.open(1, &policy) == DKV_OK);

    auto const request = harness.sidecar->wait_for(wire::Body::OpenSession);
    REQUIRE(request);
    auto const& wish = *request->body.AsOpenSession()->policy;
    CHECK(wish.name.empty());
    CHECK(!wish.capacity.has_value());
}

TEST_CASE("an engine that was built with an earlier dkv.h gets the defaults of what it lacks") {
    Harness harness;
    dkv_policy policy;
    std::memset(&policy, 0xAB, sizeof policy);  // What lies behind a shorter struct.
    dkv_policy_defaults(&policy, offsetof(dkv_policy, granularity));
    CHECK(policy.struct_bytes == offsetof(dkv_policy, granularity));
    unsigned char behind = 0;
    std::memcpy(&behind, &policy.granularity, 1);
    CHECK(behind == 0xAB);
    policy.capacity = 40;

    REQUIRE(harness.open(1, &policy) == DKV_OK);

    auto const request = harness.sidecar->wait_for(wire::Body::OpenSession);
    REQUIRE(request);
    auto const& wish = *request->body.AsOpenSession()->policy;
    CHECK(wish.capacity.value() == 40);
    CHECK(!wish.granularity.has_value());
    CHECK(!wish.ratio.has_value());
    CHECK(wish.preset.empty());
    CHECK(!wish.profile);
}

TEST_CASE("words and profiles that cannot be are refused before they are sent") {
    Harness harness;
    dkv_policy policy;
    auto const refusal = [&] {
        CHECK(harness.open(1, &policy) == DKV_INVALID_ARGUMENT);
        return std::string(dkv_last_error());
    };
    dkv_policy_init(&policy);
    policy.granularity = "token";
    CHECK(refusal() == "granularity is 'token', none of layer, head, layer-head");
    dkv_policy_init(&policy);
    policy.score_norm = "sink";
    CHECK(refusal() == "score_norm is 'sink', none of none, layer, layer-nosink");
    dkv_policy_init(&policy);
    policy.struct_bytes = 8;
    CHECK(refusal() ==
          "options->policy->struct_bytes is 8, not " + std::to_string(sizeof(dkv_policy)));
    dkv_policy_init(&policy);
    auto profile = sized<dkv_profile>();
    profile.layers = 2;
    profile.heads = 2;
    policy.profile = &profile;
    CHECK(refusal() == "the profile has 2 layers of 2 heads and no weights");
    profile.layers = profile.heads = UINT32_MAX;
    double const weight = 1;
    profile.weights = &weight;
    CHECK(refusal() == "the profile has 4294967295 layers of 4294967295 heads");
    profile.struct_bytes = 4;
    CHECK(refusal() ==
          "policy->profile->struct_bytes is 4, not " + std::to_string(sizeof(dkv_profile)));
}
