// An engine on the emulated GPU and a fake sidecar, which says that it has opened what it has not.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>
#include <doctest/doctest.h>

#include "protocol/base/kv_layout.h"
#include "protocol/sdk/dkv_cuda.h"
#include "tests/support/c_engine.h"
#include "tests/support/contains.h"
#include "tests/support/fake_sidecar.h"

namespace dkv::test {

constexpr std::uint32_t kTokens = 64;
constexpr std::uint64_t kPartBytes = 2 * kTokens * 64 * 4;
constexpr std::uint64_t kQueryBytes = 4 * kWindow * 64 * 4;

/// The CUDA driver's function, as libraries without libcuda look it up.
template <class Function>
Function driver(char const* name, unsigned version) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult known{};
    REQUIRE(cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &known) ==
            cudaSuccess);
    REQUIRE(found != nullptr);
    return reinterpret_cast<Function>(found);
}

inline std::string gpu() {
    auto device = sized<dkv_cuda_device>();
    REQUIRE_MESSAGE(dkv_cuda_get_device(0, &device) == DKV_OK, dkv_last_error());
    return device.uuid;
}

inline dkv_arena* device_arena(std::uint64_t bytes,
                               dkv_cuda_arena_kind kind = DKV_CUDA_ARENA_DEFAULT) {
    dkv_arena* arena = nullptr;
    REQUIRE_MESSAGE(dkv_cuda_arena_create(gpu().c_str(), bytes, kind, &arena) == DKV_OK,
                    dkv_last_error());
    return arena;
}

/// Whether CUDA knows of memory at that address.
inline bool is_device_memory(void const* data) {
    cudaPointerAttributes attributes{};
    auto const status = cudaPointerGetAttributes(&attributes, data);
    static_cast<void>(cudaGetLastError());
    return status == cudaSuccess && attributes.type == cudaMemoryTypeDevice;
}

struct GpuHarness {
    TemporaryEndpoint endpoint;
    std::unique_ptr<FakeSidecar> sidecar = std::make_unique<FakeSidecar>(endpoint.name());
    std::uint64_t regions = 0;  // Touched by the sidecar's thread only.
    dkv_engine* engine = nullptr;
    dkv_session* session = nullptr;
    dkv_arena* arena = nullptr;  // One layer's K, V and Q.

    explicit GpuHarness(std::uint32_t timeout_ms = 5000) {
        sidecar->on(wire::Body::RegisterRegion, [this](wire::EnvelopeT const&) {
            wire::RegionRegisteredT registered;
            registered.region = ++regions;
            return std::optional(body(registered));
        });
        wire::SessionOpenedT opened;
        opened.compress = true;
        opened.window = kWindow;
        opened.destination_bytes = 64 * 1024;
        sidecar->set_opened(opened);
        auto options = sized<dkv_engine_options>();
        auto const uuid = gpu();
        options.endpoint = endpoint.name().c_str();
        options.device = uuid.c_str();
        options.geometry = {2, 4, 2, 64, DKV_F32};
        options.timeout_ms = timeout_ms;
        REQUIRE_MESSAGE(dkv_cuda_engine_open(&options, &engine) == DKV_OK, dkv_last_error());
        REQUIRE_MESSAGE(dkv_engine_wait_attached(engine, 5000) == DKV_OK, dkv_last_error());
        arena = device_arena(2 * kPartBytes + kQueryBytes);
    }
    ~GpuHarness() {
        dkv_session_close(session, nullptr);
        dkv_arena_destroy(arena);
        dkv_engine_close(engine);
    }
    GpuHarness(GpuHarness const&) = delete;
    GpuHarness& operator=(GpuHarness const&) = delete;

    dkv_status open() {
        auto options = sized<dkv_session_options>();
        auto plan = sized<dkv_session_plan>();
        options.prompt_tokens = kTokens;
        options.progressive = 1;
        return dkv_session_open(engine, &options, &session, &plan);
    }
    static dkv_rows rows(dkv_arena* at,
                         std::uint64_t offset,
                         std::uint32_t heads,
                         std::uint32_t tokens) {
        return {at, offset, DKV_F32, heads, tokens, 64, std::uint64_t{tokens} * 64, 64, 1};
    }
    /// Behind the default stream, or another.
    dkv_status report(std::uint32_t layer,
                      dkv_arena* keys_at = nullptr,
                      cudaStream_t stream = nullptr) {
        auto ready = sized<dkv_layer_ready>();
        ready.layer = layer;
        ready.keys = rows(keys_at != nullptr ? keys_at : arena, 0, 2, kTokens);
        ready.values = rows(arena, kPartBytes, 2, kTokens);
        auto const queries = rows(arena, 2 * kPartBytes, 4, kWindow);
        ready.queries = &queries;
        return dkv_cuda_layer_ready(session, &ready, stream);
    }
    wire::LayerReadyT reported(std::size_t count = 1) {
        auto const message = sidecar->wait_for(wire::Body::LayerReady, count);
        REQUIRE(message);
        wire::LayerReadyT found;
        auto const* given = message->body.AsLayerReady();
        found.event = given->event;
        found.timeline_region = given->timeline_region;
        found.timeline_offset = given->timeline_offset;
        found.timeline_value = given->timeline_value;
        return found;
    }
};

}  // namespace dkv::test
