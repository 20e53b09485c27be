// An engine of two layers and a fake sidecar, as most tests of the SDK want them.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "protocol/base/kv_layout.h"
#include "protocol/sdk/dkv.h"
#include "tests/support/c_engine.h"
#include "tests/support/fake_sidecar.h"

namespace dkv::test {

inline std::uint32_t const kLayers = kGeometry.layers;
constexpr std::uint32_t kTokens = 128;
constexpr std::uint32_t kStageRows = 64;  // 256 bytes each: four pages a head.
inline StagingLayout const kStaging{.geometry = kGeometry, .rows_max = kStageRows};
constexpr std::uint64_t kDestinationBytes = 256 * 1024;

/// What DKV_INVALID_ARGUMENT and its like have to say.
inline std::string why() {
    return dkv_last_error();
}

inline std::vector<std::uint32_t> lengths_of(dkv_layer_view const& view) {
    return {view.lengths, view.lengths + 2};
}

inline dkv_engine* open_engine(std::string const& endpoint, std::uint32_t timeout_ms = 5000) {
    auto options = sized<dkv_engine_options>();
    options.endpoint = endpoint.c_str();
    options.engine = "test";
    options.geometry = {kLayers, 4, 2, 64, DKV_F32};
    options.timeout_ms = timeout_ms;
    dkv_engine* engine = nullptr;
    REQUIRE_MESSAGE(dkv_engine_open(&options, &engine) == DKV_OK, dkv_last_error());
    return engine;
}

inline wire::SessionOpenedT compressing() {
    wire::SessionOpenedT opened;
    opened.compress = true;
    opened.window = kWindow;
    opened.stage_rows = kStageRows;
    opened.staging_bytes = kStaging.region_bytes();
    opened.destination_bytes = kDestinationBytes;
    return opened;
}

/// A fake sidecar, an engine attached to it, and what a test does with the two.
struct Harness {
    TemporaryEndpoint endpoint;
    std::unique_ptr<FakeSidecar> sidecar = std::make_unique<FakeSidecar>(endpoint.name());
    dkv_engine* engine = nullptr;
    dkv_arena* arena = nullptr;
    dkv_session* session = nullptr;
    dkv_session_plan plan = sized<dkv_session_plan>();

    explicit Harness(std::uint32_t timeout_ms = 5000) {
        engine = open_engine(endpoint.name(), timeout_ms);
        sidecar->set_opened(compressing());
        REQUIRE_MESSAGE(dkv_engine_wait_attached(engine, 5000) == DKV_OK, dkv_last_error());
        REQUIRE(dkv_arena_create(kLayers * layer_bytes(), DKV_ARENA_DEFAULT, &arena) == DKV_OK);
    }
    ~Harness() {
        dkv_session_close(session, nullptr);
        dkv_arena_destroy(arena);
        dkv_engine_close(engine);
    }
    Harness(Harness const&) = delete;
    Harness& operator=(Harness const&) = delete;

    static std::uint64_t layer_bytes() {
        return kGeometry.token_bytes() * kTokens + 4 * kWindow * kGeometry.row_bytes();
    }

    dkv_status open(std::int32_t progressive = 1, dkv_policy const* policy = nullptr) {
        auto options = sized<dkv_session_options>();
        options.prompt_tokens = kTokens;
        options.progressive = progressive;
        options.policy = policy;
        return dkv_session_open(engine, &options, &session, &plan);
    }

    dkv_rows rows(std::uint64_t offset, std::uint32_t heads, std::uint32_t tokens) const {
        return {arena, offset, DKV_F32, heads, tokens, 64, std::uint64_t{tokens} * 64, 64, 1};
    }
    dkv_status report(std::uint32_t layer) {
        auto const half = kGeometry.token_bytes() * kTokens / 2;
        auto ready = sized<dkv_layer_ready>();
        ready.layer = layer;
        ready.keys = rows(layer * layer_bytes(), 2, kTokens);
        ready.values = rows(layer * layer_bytes() + half, 2, kTokens);
        auto const queries = rows(layer * layer_bytes() + 2 * half, 4, kWindow);
        ready.queries = &queries;
        return dkv_session_layer_ready(session, &ready);
    }

    std::uint64_t session_id() {
        auto const request = sidecar->wait_for(wire::Body::OpenSession);
        REQUIRE(request);
        return request->body.AsOpenSession()->session;
    }
    void progress(std::uint32_t layer,
                  wire::LayerStage stage,
                  std::vector<std::uint32_t> lengths,
                  std::uint64_t destination_offset = 0) {
        wire::LayerProgressT message;
        message.session = session_id();
        message.layer = layer;
        message.stage = stage;
        message.lengths = std::move(lengths);
        message.destination_offset = destination_offset;
        sidecar->say(body(std::move(message)));
    }
    std::span<std::byte> staging() {
        auto const bound = sidecar->wait_for(wire::Body::BindBuffers);
        REQUIRE(bound);
        return sidecar->region(bound->body.AsBindBuffers()->staging_region);
    }
    std::span<std::byte> destination() {
        auto const bound = sidecar->wait_for(wire::Body::BindBuffers);
        REQUIRE(bound);
        return sidecar->region(bound->body.AsBindBuffers()->destination_region);
    }
    /// Writes positions 0, 1, … into a packed layer and says that it is committed; where it ends.
    std::uint64_t pack(std::uint32_t layer,
                       std::vector<std::uint32_t> lengths,
                       std::uint64_t begin) {
        auto const packed = packed_layer(kGeometry, lengths, begin);
        auto* next = destination().data() + packed.positions_offset;
        for (auto const length : lengths)
            for (std::uint32_t position = 0; position < length; ++position, next += 4)
                std::memcpy(next, &position, 4);
        progress(layer, wire::LayerStage::Committed, std::move(lengths), begin);
        return packed.end_offset;
    }
    void commit(
        std::vector<std::uint32_t> lengths,
        std::function<void(wire::CommittedT&)> const& change = [](auto&) {}) {
        wire::CommittedT message;
        message.session = session_id();
        for (auto const length : lengths)
            message.bytes_kept += length * 2 * kGeometry.row_bytes();
        message.lengths = std::move(lengths);
        message.mass_kept = {0.5F, 0.25F};
        message.bytes_full = kGeometry.cache_bytes(kTokens);
        change(message);
        sidecar->say(body(std::move(message)));
    }

    /// "RELEASE 0": the next event, in words; waits for it.
    std::string event(std::uint32_t timeout_ms = 5000) {
        auto event = sized<dkv_event>();
        REQUIRE_MESSAGE(dkv_session_poll(session, &event, timeout_ms) == DKV_OK, dkv_last_error());
        auto const layer = " " + std::to_string(event.layer);
        switch (event.kind) {
            case DKV_EVENT_NONE: return "NONE";
            case DKV_EVENT_RELEASE: return "RELEASE" + layer;
            case DKV_EVENT_TRIMMED: return "TRIMMED" + layer;
            case DKV_EVENT_PACKED: return "PACKED" + layer;
            case DKV_EVENT_COMMITTED: return "COMMITTED";
            case DKV_EVENT_FAILED: return std::string("FAILED: ") + dkv_last_error();
        }
        return "?";
    }
    dkv_layer_view view(std::uint32_t layer) {
        auto view = sized<dkv_layer_view>();
        REQUIRE_MESSAGE(dkv_session_layer(session, layer, &view) == DKV_OK, dkv_last_error());
        return view;
    }
    dkv_engine_state state() {
        auto state = sized<dkv_engine_state>();
        REQUIRE(dkv_engine_get_state(engine, &state) == DKV_OK);
        return state;
    }
};

}  // namespace dkv::test
