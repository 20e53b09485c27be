// What a lying sidecar may not do to an engine: each answer and event with one thing wrong.
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/protocol/sdk/harness.h"

using namespace dkv;
using namespace dkv::test;

namespace {

/// Two layers packed without a lie, all but the commit.
void pack_all(Harness& harness) {
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);
    harness.pack(1, {4, 4}, harness.pack(0, {4, 4}, 0));
}

}  // namespace

TEST_CASE("lengths, places and positions that cannot be are refused") {
    struct Wild {
        char const* name;
        std::function<void(Harness&)> act;
        char const* words;
    };
    using Lengths = std::vector<std::uint32_t>;
    auto const wild = std::vector<Wild>{
        {"more rows than staged",
         [](Harness& h) {
             h.progress(0, wire::LayerStage::Staged, {65, 64});
         },
         "the sidecar gave layer 0 65 rows in a head; the most is 64"},
        {"a length too few", [](Harness& h) { h.progress(0, wire::LayerStage::Staged, {4}); },
         "the sidecar gave layer 0 1 lengths for 2 KV heads"},
        {"a layer that was not reported",
         [](Harness& h) {
             h.progress(1, wire::LayerStage::Staged, {4, 4});
         },
         "the sidecar speaks of layer 1; 1 were reported"},
        {"a place beyond the destination",
         [](Harness& h) {
             h.progress(0, wire::LayerStage::Committed, Lengths{4, 4}, kDestinationBytes);
         },
         "the sidecar packed layer 0 at byte 262144, beyond a destination of 262144"},
        {"a place that overflows",
         [](Harness& h) {
             h.progress(0, wire::LayerStage::Committed, Lengths{4, 4}, UINT64_MAX);
         },
         "the sidecar packed layer 0 at byte 18446744073709551615, beyond a destination of 262144"},
        {"rows beyond the prompt",
         [](Harness& h) {
             h.progress(0, wire::LayerStage::Committed, Lengths{4, 129}, 0);
         },
         "the sidecar gave layer 0 129 rows in a head; the most is 128"},
        {"positions that do not rise",
         [](Harness& h) {
             h.progress(0, wire::LayerStage::Committed, Lengths{2, 2}, 0);
         },
         "the sidecar packed position 0 after 0 in head 0 of layer 0, of a prompt of 128"},
        {"a stage that there is not",
         [](Harness& h) {
             h.progress(0, static_cast<wire::LayerStage>(9), {4, 4});
         },
         "the sidecar put layer 0 in stage 9, which there is not"},
        {"a commit of layers that were not packed",
         [](Harness& h) {
             h.commit({4, 4, 4, 4});
         },
         "the sidecar committed without packing layer 0"},
        {"a commit of too few lengths",
         [](Harness& h) {
             h.commit({4, 4});
         },
         "the sidecar committed 2 lengths for 4 heads"},
    };
    for (Wild const& lie : wild) {
        CAPTURE(lie.name);
        Harness harness;
        REQUIRE(harness.open() == DKV_OK);
        REQUIRE(harness.report(0) == DKV_OK);
        lie.act(harness);
        CHECK(harness.event() == std::string("FAILED: ") + lie.words);
        CHECK(dkv_session_failure(harness.session) == DKV_CORRUPT_DATA);
        CHECK(harness.view(0).form == DKV_LAYER_FULL);
    }
}

TEST_CASE("trimming cannot make a layer longer") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    harness.progress(0, wire::LayerStage::Staged, {10, 10});
    CHECK(harness.event() == "RELEASE 0");
    harness.progress(0, wire::LayerStage::Trimmed, {10, 11});
    CHECK(harness.event() == "FAILED: the sidecar trimmed layer 0 from 10 rows up to 11");
    CHECK(lengths_of(harness.view(0)) == std::vector<std::uint32_t>{10, 10});
}

TEST_CASE("a sidecar that wants buffers which the prompt cannot need is refused") {
    Harness harness;
    auto opened = compressing();
    opened.staging_bytes = UINT64_MAX;
    harness.sidecar->set_opened(opened);
    CHECK(harness.open() == DKV_CORRUPT_DATA);
    opened = compressing();
    opened.staging_bytes = kStaging.region_bytes() - 1;
    harness.sidecar->set_opened(opened);
    CHECK(harness.open() == DKV_CORRUPT_DATA);
    opened = compressing();
    opened.destination_bytes = std::uint64_t{1} << 40U;
    harness.sidecar->set_opened(opened);
    CHECK(harness.open() == DKV_CORRUPT_DATA);
    CHECK(std::string(dkv_last_error()) ==
          "the sidecar wants 1099511627776 bytes of destination for 128 tokens");
    opened = compressing();
    opened.window = kTokens + 1;
    harness.sidecar->set_opened(opened);
    CHECK(harness.open() == DKV_CORRUPT_DATA);
    CHECK(harness.sidecar->wait_for(wire::Body::CloseSession, 4));
}

TEST_CASE("a reply of the wrong kind is refused") {
    Harness harness;
    harness.sidecar->on(wire::Body::OpenSession, [](auto const&) { return body(wire::DoneT{}); });
    CHECK(harness.open() == DKV_CORRUPT_DATA);
    CHECK(std::string(dkv_last_error()) ==
          "the sidecar answered with Done where SessionOpened was due");
}

TEST_CASE("shares, byte counts and times that cannot be are refused at the commit") {
    struct Wild {
        std::function<void(wire::CommittedT&)> change;
        std::string words;
    };
    auto const full = kGeometry.cache_bytes(kTokens);
    auto const kept = 16 * 2 * kGeometry.row_bytes();
    auto const wild = std::vector<Wild>{
        {[](auto& said) { said.mass_kept[1] = std::nanf(""); },
         "committed nan as the share of mass that layer 1 keeps"},
        {[](auto& said) { said.mass_kept[0] = -0.25F; },
         "committed -0.250000 as the share of mass that layer 0 keeps"},
        {[](auto& said) { said.mass_kept[0] = 1.01F; },
         "committed 1.010000 as the share of mass that layer 0 keeps"},
        {[](auto& said) { said.mass_kept[0] = std::numeric_limits<float>::infinity(); },
         "committed inf as the share of mass that layer 0 keeps"},
        {[](auto& said) { said.mass_kept.push_back(1); },
         "committed 3 shares of mass for 2 layers"},
        {[](auto& said) { said.bytes_full = UINT64_MAX; },
         "committed 18446744073709551615 bytes in full where the lengths make " +
             std::to_string(full)},
        {[](auto& said) { said.bytes_kept += 1; }, "committed " + std::to_string(kept + 1) +
                                                       " bytes kept where the lengths make " +
                                                       std::to_string(kept)},
        {[](auto& said) { said.bytes_block_table = UINT64_MAX; },
         "committed 18446744073709551615 bytes of a block table that has "},
        {[](auto& said) { said.busy_ns = UINT64_MAX; },
         "committed 18446744073709551615 ns of its time after "},
        {[](auto& said) { said.wait_ns = UINT64_MAX; },
         "committed 18446744073709551615 ns of its time after "},
        {[](auto& said) { said.lengths[3] += 1; },
         "committed other lengths than it packed in layer 1"},
    };
    for (Wild const& lie : wild) {
        CAPTURE(lie.words);
        Harness harness;
        pack_all(harness);
        harness.commit({4, 4, 4, 4}, lie.change);

        auto result = sized<dkv_result>();
        CHECK(dkv_session_finish(harness.session, 5000, &result) == DKV_CORRUPT_DATA);

        CHECK(why().starts_with("the sidecar " + lie.words));
        CHECK(result.committed == 0);
        // Nothing was released yet, so every layer is as the engine had it.
        CHECK(harness.view(0).form == DKV_LAYER_FULL);
        CHECK(harness.view(1).form == DKV_LAYER_FULL);
    }
}

TEST_CASE("a share of one and a little is what rounding makes of one") {
    Harness harness;
    pack_all(harness);
    harness.commit({4, 4, 4, 4}, [](auto& said) { said.mass_kept = {1.0001F, 0}; });

    auto result = sized<dkv_result>();
    CHECK_MESSAGE(dkv_session_finish(harness.session, 5000, &result) == DKV_OK, why());
    CHECK(harness.view(1).mass_kept == 0);
}

TEST_CASE("a layer that is packed over another one is refused") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);
    auto const end = harness.pack(0, {4, 4}, 0);
    CHECK(harness.event() == "PACKED 0");
    CHECK(harness.event() == "RELEASE 0");

    harness.pack(1, {4, 4}, end - 64);

    CHECK(harness.event() == "FAILED: the sidecar packed layer 1 at byte " +
                                 std::to_string(end - 64) + ", over layer 0");
    CHECK(harness.view(0).form == DKV_LAYER_PACKED);
    CHECK(harness.view(1).form == DKV_LAYER_FULL);
}

TEST_CASE("a sidecar that never stops talking is cut short") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);
    for (int repeated = 0; repeated < 1000; ++repeated)
        harness.progress(0, wire::LayerStage::Scored, {4, 4});

    auto result = sized<dkv_result>();
    CHECK(dkv_session_finish(harness.session, 5000, &result) == DKV_CORRUPT_DATA);
    CHECK(why().starts_with("the sidecar said more of this session than there is to say: over "));
}

TEST_CASE("a policy whose name is not a name is refused") {
    Harness harness;
    for (std::string const& name : {std::string("snap\x1b[31mkv"), std::string(),
                                    std::string("\xff\xfe"), std::string(64, 'a')}) {
        auto opened = compressing();
        opened.policy = std::make_unique<wire::PolicyT>();
        opened.policy->name = name;
        harness.sidecar->set_opened(std::move(opened));
        CHECK(harness.open() == DKV_CORRUPT_DATA);
        CHECK(why().starts_with("the sidecar names a policy of " + std::to_string(name.size()) +
                                " bytes that are not a name: '"));
        CHECK(why().find('\x1b') == std::string::npos);
    }
}

TEST_CASE("a failure's text is cut, and cannot steer a terminal; its unknown code is internal") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    wire::SessionFailedT failed;
    failed.session = harness.session_id();
    failed.failure = std::make_unique<wire::FailureT>();
    failed.failure->code = static_cast<wire::ErrorCode>(999);
    failed.failure->message = "\x1b[31m\nred\xc2\x9b" + std::string(100'000, 'z');
    harness.sidecar->say(body(std::move(failed)));

    auto const event = harness.event();

    CHECK(event.starts_with("FAILED: ?[31m?red??zzz"));
    CHECK(event.ends_with("zzz..."));
    CHECK(event.size() == 1000 + std::string("FAILED: ").size());
    CHECK(dkv_session_failure(harness.session) == DKV_INTERNAL);
}

TEST_CASE("a layer that is answered with something else than Done ends the session") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    harness.sidecar->on(wire::Body::LayerReady,
                        [](auto const&) { return body(wire::RegionRegisteredT{}); });
    REQUIRE(harness.report(0) == DKV_OK);
    CHECK(harness.event() ==
          "FAILED: the sidecar answered with RegionRegistered where Done was due");
}
