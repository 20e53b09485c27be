// A session's life, and what a wrong sidecar is not allowed to do to it.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/protocol/sdk/harness.h"

using namespace dkv;
using namespace dkv::test;

namespace {

constexpr std::uint64_t kPage = 4096;

}  // namespace

TEST_CASE("a progressive session: release, trim, pack, commit, each once and in this order") {
    Harness harness;
    REQUIRE_MESSAGE(harness.open() == DKV_OK, dkv_last_error());
    CHECK(harness.plan.compress == 1);
    CHECK(harness.plan.window == kWindow);
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);

    harness.progress(0, wire::LayerStage::Staged, {64, 60});
    harness.progress(1, wire::LayerStage::Staged, {64, 64});
    harness.progress(0, wire::LayerStage::Trimmed, {16, 20});
    CHECK(harness.event() == "RELEASE 0");
    CHECK(harness.view(0).form == DKV_LAYER_STAGED);
    CHECK(harness.event() == "RELEASE 1");
    CHECK(harness.event() == "TRIMMED 0");
    CHECK(lengths_of(harness.view(0)) == std::vector<std::uint32_t>{16, 20});
    CHECK(harness.view(0).head_offset[1] == kStaging.segment_bytes());
    CHECK(harness.event(0) == "NONE");

    auto const end = harness.pack(0, {16, 20}, 0);
    auto const last = harness.pack(1, {30, 30}, end);
    CHECK(last <= kDestinationBytes);
    harness.commit({16, 20, 30, 30});
    auto result = sized<dkv_result>();
    REQUIRE_MESSAGE(dkv_session_finish(harness.session, 5000, &result) == DKV_OK, dkv_last_error());
    CHECK(result.committed == 1);
    CHECK(result.bytes_full == kGeometry.cache_bytes(kTokens));
    CHECK(result.bytes_kept == (16 + 20 + 30 + 30) * 2 * kGeometry.row_bytes());
    CHECK(harness.event() == "PACKED 0");
    CHECK(harness.event() == "PACKED 1");
    CHECK(harness.event() == "COMMITTED");
    CHECK(harness.event(0) == "NONE");

    auto const view = harness.view(1);
    CHECK(view.form == DKV_LAYER_PACKED);
    CHECK(lengths_of(view) == std::vector<std::uint32_t>{30, 30});
    CHECK(view.head_offset[1] == 30 * kGeometry.row_bytes());
    CHECK(view.positions[29] == 29);
    CHECK(view.positions[30] == 0);
    CHECK(view.mass_kept == 0.25F);
    CHECK(dkv_session_failure(harness.session) == DKV_OK);
    CHECK(dkv_session_returned_to_pool(harness.session, 4) == DKV_OK);
    CHECK(dkv_session_adopted(harness.session, 1, 2, 3) == DKV_OK);
    auto const adopted = harness.sidecar->wait_for(wire::Body::Adopted);
    REQUIRE(adopted);
    CHECK(adopted->body.AsAdopted()->bytes_peak == 2);
    CHECK(adopted->body.AsAdopted()->bytes_pool == 4);
    CHECK(adopted->body.AsAdopted()->session == dkv_session_id(harness.session));
    CHECK(dkv_session_id(nullptr) == 0);
    CHECK(dkv_session_returned_to_pool(nullptr, 4) == DKV_INVALID_ARGUMENT);
}

TEST_CASE("what the sidecar wrote is what the engine reads") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    auto const packed = packed_layer(kGeometry, std::vector<std::uint32_t>{2, 1}, 0);
    float const mark = 42;
    std::memcpy(harness.destination().data() + packed.values_offset + 2 * kGeometry.row_bytes(),
                &mark, sizeof mark);
    harness.pack(0, {2, 1}, 0);

    CHECK(harness.event() == "PACKED 0");

    auto const view = harness.view(0);
    float read = 0;
    std::memcpy(&read, static_cast<std::byte const*>(view.values) + view.head_offset[1],
                sizeof read);
    CHECK(read == 42);
}

TEST_CASE("trimming and packing give staged pages back to the system") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);
    std::memset(harness.staging().data(), 1, harness.staging().size());
    dkv_arena* staging = nullptr;
    REQUIRE(dkv_session_take_arena(harness.session, DKV_LAYER_STAGED, &staging) == DKV_OK);
    // Two layers of K and V for two heads, four pages each.
    REQUIRE(dkv_arena_allocated_bytes(staging) == 32 * kPage);

    harness.progress(0, wire::LayerStage::Staged, {64, 64});
    harness.progress(0, wire::LayerStage::Trimmed, {16, 17});
    CHECK(harness.event() == "RELEASE 0");
    CHECK(harness.event() == "TRIMMED 0");
    // 16 rows fill one page and 17 rows begin another, in K and V alike.
    CHECK(dkv_arena_allocated_bytes(staging) == (16 + 2 + 4) * kPage);
    CHECK(*(static_cast<std::byte const*>(harness.view(0).keys) + kPage - 1) == std::byte{1});

    harness.pack(0, {16, 17}, 0);
    CHECK(harness.event() == "PACKED 0");
    CHECK(dkv_arena_allocated_bytes(staging) == 16 * kPage);
    dkv_arena_destroy(staging);
}

TEST_CASE("a layer that is packed without being staged is released by that") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    harness.pack(0, {4, 4}, 0);

    CHECK(harness.event() == "PACKED 0");
    CHECK(harness.event() == "RELEASE 0");
    CHECK(harness.view(0).form == DKV_LAYER_PACKED);
}

TEST_CASE("without progressive release every layer stays full until all is committed") {
    Harness harness;
    REQUIRE(harness.open(0) == DKV_OK);
    auto const request = harness.sidecar->wait_for(wire::Body::OpenSession);
    REQUIRE(request);
    CHECK(request->body.AsOpenSession()->progressive == false);
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);

    auto const end = harness.pack(0, {4, 4}, 0);
    CHECK(harness.event() == "PACKED 0");
    CHECK(harness.view(0).form == DKV_LAYER_FULL);
    harness.pack(1, {5, 5}, end);
    CHECK(harness.event() == "PACKED 1");
    harness.commit({4, 4, 5, 5});
    CHECK(harness.event() == "COMMITTED");
    CHECK(harness.event() == "RELEASE 0");
    CHECK(harness.event() == "RELEASE 1");
    CHECK(harness.view(0).form == DKV_LAYER_PACKED);
}

TEST_CASE("when a session fails, released layers stay staged and the others are full again") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);
    harness.progress(0, wire::LayerStage::Staged, {64, 64});
    CHECK(harness.event() == "RELEASE 0");

    harness.progress(1, wire::LayerStage::Staged, {64, 64});
    wire::SessionFailedT failed;
    failed.session = harness.session_id();
    failed.failure = std::make_unique<wire::FailureT>();
    failed.failure->code = wire::ErrorCode::Device;
    failed.failure->message = "the backend is on fire";
    harness.sidecar->say(body(std::move(failed)));
    auto result = sized<dkv_result>();
    CHECK(dkv_session_finish(harness.session, 5000, &result) == DKV_DEVICE);

    CHECK(harness.event() == "FAILED: the backend is on fire");
    CHECK(harness.event(0) == "NONE");
    CHECK(result.committed == 0);
    CHECK(harness.view(0).form == DKV_LAYER_STAGED);
    CHECK(lengths_of(harness.view(0)) == std::vector<std::uint32_t>{64, 64});
    CHECK(harness.view(1).form == DKV_LAYER_FULL);
    CHECK(harness.view(1).keys == nullptr);
    CHECK(dkv_session_adopted(harness.session, 1, 2, 3) == DKV_BAD_STATE);
    auto const closed = harness.sidecar->wait_for(wire::Body::CloseSession);
    REQUIRE(closed);
    CHECK(closed->body.AsCloseSession()->reason == "the backend is on fire");
    CHECK(std::string(harness.state().last_error) == "the backend is on fire");
}

TEST_CASE("a layer that the sidecar refuses abandons the session with the sidecar's words") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    harness.sidecar->on(wire::Body::LayerReady, [](auto const&) {
        return failure(wire::ErrorCode::NotFound, "region 3 is not registered");
    });
    REQUIRE(harness.report(0) == DKV_OK);

    CHECK(harness.event() == "FAILED: region 3 is not registered");
    CHECK(dkv_session_failure(harness.session) == DKV_NOT_FOUND);
}

TEST_CASE("finish gives up at its deadline, and what comes later changes nothing") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    auto result = sized<dkv_result>();
    CHECK(dkv_session_finish(harness.session, 1000, &result) == DKV_BAD_STATE);
    CHECK(std::string(dkv_last_error()) == "0 of 2 layers were reported");
    REQUIRE(harness.report(0) == DKV_OK);
    REQUIRE(harness.report(1) == DKV_OK);

    CHECK(dkv_session_finish(harness.session, 20, &result) == DKV_DEADLINE_EXCEEDED);
    CHECK(std::string(dkv_last_error()) == "the sidecar did not commit within 20 ms");
    harness.pack(0, {4, 4}, 0);
    CHECK(harness.event() == "FAILED: the sidecar did not commit within 20 ms");
    CHECK(harness.event(50) == "NONE");
    CHECK(harness.view(0).form == DKV_LAYER_FULL);
}

TEST_CASE("late and repeated messages are no-ops") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    harness.progress(0, wire::LayerStage::Staged, {10, 10});
    harness.progress(0, wire::LayerStage::Staged, {12, 12});
    harness.pack(0, {4, 4}, 0);
    harness.progress(0, wire::LayerStage::Trimmed, {3, 3});
    harness.progress(0, wire::LayerStage::Committed, {1, 1}, 0);
    CHECK(harness.event() == "RELEASE 0");
    CHECK(harness.event() == "PACKED 0");
    CHECK(harness.event(100) == "NONE");
    CHECK(lengths_of(harness.view(0)) == std::vector<std::uint32_t>{4, 4});
}

TEST_CASE("the sidecar's refusal of a policy reaches the engine word for word") {
    Harness harness;
    harness.sidecar->on(wire::Body::OpenSession, [](auto const&) {
        return failure(wire::ErrorCode::InvalidArgument, "capacity is 16, below the window 32");
    });
    dkv_policy policy;
    dkv_policy_init(&policy);
    policy.capacity = 16;
    policy.pool = "avg";
    policy.r_min = 0.25;

    CHECK(harness.open(1, &policy) == DKV_INVALID_ARGUMENT);
    CHECK(std::string(dkv_last_error()) == "capacity is 16, below the window 32");

    auto const request = harness.sidecar->wait_for(wire::Body::OpenSession);
    REQUIRE(request);
    auto const& wish = *request->body.AsOpenSession()->policy;
    CHECK(wish.name.empty());  // None was named: the sidecar's own.
    CHECK(wish.capacity.value() == 16);
    CHECK(!wish.window.has_value());
    CHECK(wish.pool.value() == wire::Pool::Avg);
    CHECK(wish.r_min.value() == 0.25);
    CHECK(!wish.beta.has_value());
    policy.reduce = "median";
    CHECK(harness.open(1, &policy) == DKV_INVALID_ARGUMENT);
    CHECK(std::string(dkv_last_error()) == "reduce is 'median', none of mean, max, sum");
}

TEST_CASE("layers are checked before they are sent") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    auto const queries = harness.rows(0, 4, kWindow);
    auto ready = sized<dkv_layer_ready>();
    ready.keys = ready.values = harness.rows(0, 2, kTokens);
    ready.queries = &queries;
    auto const refused = [&](dkv_layer_ready const& given) {
        auto const status = dkv_session_layer_ready(harness.session, &given);
        return std::string(dkv_status_name(status)) + ": " + dkv_last_error();
    };

    CHECK(harness.report(1) == DKV_BAD_STATE);
    CHECK(std::string(dkv_last_error()) == "layer 1 was reported, layer 0 is next");
    auto wrong = ready;
    wrong.keys.dtype = DKV_F16;
    CHECK(refused(wrong) == "invalid_argument: keys are [2, 128, 64] f16, not [2, 128, 64] f32");
    wrong = ready;
    wrong.values.offset = dkv_arena_bytes(harness.arena);
    CHECK(refused(wrong).starts_with("invalid_argument: values end at byte "));
    wrong = ready;
    wrong.values.token_stride = UINT64_MAX / 2;
    CHECK(refused(wrong).starts_with("invalid_argument: values end at byte 2^64 or beyond"));
    wrong = ready;
    wrong.values.offset = 2;
    CHECK(refused(wrong) == "invalid_argument: values begin at byte 2, inside an element");
    wrong = ready;
    wrong.keys.arena = nullptr;
    CHECK(refused(wrong) == "invalid_argument: keys have no arena");
    wrong = ready;
    wrong.queries = nullptr;
    CHECK(refused(wrong) == "invalid_argument: layer 0 has neither queries nor scores");
    wrong = ready;
    wrong.scale = std::nanf("");
    CHECK(refused(wrong) == "invalid_argument: layer 0 has a negative scale or softcap");
    float const sinks[] = {1, 2, std::nanf(""), 4};
    wrong = ready;
    wrong.sink_logits = sinks;
    CHECK(refused(wrong) ==
          "invalid_argument: layer 0: sink_logits[2] is nan, not a finite number");

    CHECK_MESSAGE(dkv_session_layer_ready(harness.session, &ready) == DKV_OK, dkv_last_error());
    CHECK(harness.sidecar->count(wire::Body::LayerReady) <= 1);
}

TEST_CASE("a layer's sinks reach the sidecar; an engine of an earlier dkv.h has none") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    auto const queries = harness.rows(0, 4, kWindow);
    float const sinks[] = {-1, 0, 2.5F, 30};
    auto ready = sized<dkv_layer_ready>();
    ready.keys = ready.values = harness.rows(0, 2, kTokens);
    ready.queries = &queries;
    ready.sink_logits = sinks;
    REQUIRE(dkv_session_layer_ready(harness.session, &ready) == DKV_OK);
    auto const first = harness.sidecar->wait_for(wire::Body::LayerReady);
    REQUIRE(first);
    CHECK(first->body.AsLayerReady()->sink_logits == std::vector<float>{-1, 0, 2.5F, 30});

    ready.layer = 1;
    ready.struct_bytes = offsetof(dkv_layer_ready, sink_logits);
    REQUIRE(dkv_session_layer_ready(harness.session, &ready) == DKV_OK);
    auto const second = harness.sidecar->wait_for(wire::Body::LayerReady, 2);
    REQUIRE(second);
    CHECK(second->body.AsLayerReady()->layer == 1);
    CHECK(second->body.AsLayerReady()->sink_logits.empty());
    ready.struct_bytes -= 1;
    CHECK(dkv_session_layer_ready(harness.session, &ready) == DKV_INVALID_ARGUMENT);
    CHECK(std::string(dkv_last_error()) == "ready->struct_bytes is " +
                                               std::to_string(ready.struct_bytes) + ", not " +
                                               std::to_string(sizeof ready));
}

TEST_CASE("a prompt in blocks of the engine's cache is told as block 0 and a table") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    auto const queries = harness.rows(0, 4, kWindow);
    std::vector<std::uint32_t> ids{3, 0, 2, 1};
    dkv_blocks blocks{ids.data(), 4, 32 * 2 * 64};
    auto ready = sized<dkv_layer_ready>();
    ready.keys = ready.values = harness.rows(0, 2, 32);
    ready.queries = &queries;
    ready.blocks = &blocks;
    auto const refused = [&] {
        CHECK(dkv_session_layer_ready(harness.session, &ready) == DKV_INVALID_ARGUMENT);
        return std::string(dkv_last_error());
    };

    blocks.count = 3;
    CHECK(refused() == "keys of 128 tokens do not lie in 3 blocks of 32");
    blocks = {nullptr, 4, 32 * 2 * 64};
    CHECK(refused() == "keys of 128 tokens do not lie in 0 blocks of 32");
    blocks = {ids.data(), 4, 32 * 2 * 64};
    ids[2] = 1U << 20U;
    CHECK(refused().starts_with(
        "keys have block 1048576, which ends at byte 17179885568 of an arena"));
    blocks.stride = UINT64_MAX / 2;
    CHECK(refused().starts_with("keys have block 1048576, which ends at byte 2^64 or beyond"));
    blocks.stride = 32 * 2 * 64;
    ids[2] = 2;
    ready.values.tokens = 64;
    CHECK(refused() == "values are [2, 64, 64] f32, not [2, 32, 64] f32");
    ready.values.tokens = 32;

    REQUIRE_MESSAGE(dkv_session_layer_ready(harness.session, &ready) == DKV_OK, dkv_last_error());
    auto const sent = harness.sidecar->wait_for(wire::Body::LayerReady);
    REQUIRE(sent);
    auto const& message = *sent->body.AsLayerReady();
    CHECK(message.keys->tokens == 32);
    REQUIRE(message.blocks);
    CHECK(message.blocks->ids == ids);
    CHECK(message.blocks->stride == 32 * 2 * 64);
}

TEST_CASE("a prompt in one block needs no table") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    auto const queries = harness.rows(0, 4, kWindow);
    std::uint32_t const id = 3;
    dkv_blocks const blocks{&id, 1, 64};  // Elements; no other block is read.
    auto ready = sized<dkv_layer_ready>();
    ready.keys = ready.values = harness.rows(16, 2, kTokens);
    ready.queries = &queries;
    ready.blocks = &blocks;
    REQUIRE_MESSAGE(dkv_session_layer_ready(harness.session, &ready) == DKV_OK, dkv_last_error());
    auto const sent = harness.sidecar->wait_for(wire::Body::LayerReady);
    REQUIRE(sent);
    auto const& message = *sent->body.AsLayerReady();
    CHECK(!message.blocks);
    CHECK(message.keys->offset == 16 + 3 * 64 * 4);
    CHECK(message.values->tokens == kTokens);
}

TEST_CASE("an arena that the session made can be taken once, and outlives the session") {
    Harness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    harness.pack(0, {1, 1}, 0);
    CHECK(harness.event() == "PACKED 0");
    auto const* const keys = static_cast<std::byte const*>(harness.view(0).keys);

    dkv_arena* arena = nullptr;
    REQUIRE(dkv_session_take_arena(harness.session, DKV_LAYER_PACKED, &arena) == DKV_OK);
    dkv_arena* again = nullptr;
    CHECK(dkv_session_take_arena(harness.session, DKV_LAYER_PACKED, &again) == DKV_BAD_STATE);
    CHECK(std::string(dkv_last_error()) == "the destination arena was taken before");
    CHECK(dkv_session_take_arena(harness.session, DKV_LAYER_FULL, &again) == DKV_BAD_STATE);
    CHECK(again == nullptr);
    dkv_session_close(harness.session, nullptr);
    harness.session = nullptr;

    CHECK(keys == dkv_arena_base(arena));
    CHECK(*keys == std::byte{0});
    dkv_arena_destroy(arena);
}
