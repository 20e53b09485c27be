// An engine on a GPU: what crosses the wire for its memory and its streams, and when memory is
// freed.
#include <array>
#include <atomic>
#include <cstring>
#include <span>
#include <thread>

#include <sys/socket.h>
#include <sys/un.h>

#include "protocol/base/fd_message.h"
#include "protocol/base/unique_fd.h"
#include "tests/protocol/sdk_cuda/harness.h"

using namespace dkv;
using namespace dkv::test;

namespace {

/// The region that was registered `count`th.
wire::RegisterRegionT const& registered(std::optional<wire::EnvelopeT>& message,
                                        GpuHarness& harness,
                                        std::size_t count) {
    message = harness.sidecar->wait_for(wire::Body::RegisterRegion, count);
    REQUIRE(message);
    return *message->body.AsRegisterRegion();
}

/// A sidecar that is slow to let go: the request stays unanswered until the test says so.
void keep_silent_about_detach(FakeSidecar& sidecar) {
    sidecar.on(wire::Body::UnregisterRegion,
               [](wire::EnvelopeT const&) { return std::optional<wire::BodyUnion>(); });
}

}  // namespace

TEST_CASE("dkv_engine_open refuses a GPU, which needs the other library") {
    auto options = sized<dkv_engine_options>();
    options.endpoint = "ipc:///tmp/nobody";
    options.device = "GPU-1";
    options.geometry = {2, 4, 2, 64, DKV_F32};
    dkv_engine* engine = nullptr;

    CHECK(dkv_engine_open(&options, &engine) == DKV_INVALID_ARGUMENT);
    CHECK(contains(dkv_last_error(), "dkv_cuda_engine_open of libdkv_cuda"));
    CHECK(dkv_cuda_engine_open(&options, &engine) == DKV_NOT_FOUND);
    CHECK(contains(dkv_last_error(), "device 'GPU-1' is not one of this process's: GPU-"));
    options.device = nullptr;
    CHECK(dkv_cuda_engine_open(&options, &engine) == DKV_INVALID_ARGUMENT);
    CHECK(contains(dkv_last_error(), "options->device is NULL"));
    CHECK(engine == nullptr);
}

TEST_CASE("the wire carries the GPU's UUID, and a session's buffers are that GPU's memory") {
    GpuHarness harness;
    auto const hello = harness.sidecar->wait_for(wire::Body::Hello);
    REQUIRE(hello);
    CHECK(hello->body.AsHello()->device == gpu());

    REQUIRE_MESSAGE(harness.open() == DKV_OK, dkv_last_error());

    std::optional<wire::EnvelopeT> message;
    auto const& destination = registered(message, harness, 1);
    REQUIRE(destination.source.AsCudaIpc() != nullptr);
    CHECK(destination.source.AsCudaIpc()->handle.size() == 64);
    CHECK(destination.source.AsCudaIpc()->allocation_bytes >= destination.bytes);
    CHECK(destination.writable);
}

TEST_CASE("an adopted pointer crosses as its allocation, an offset and a length") {
    GpuHarness harness;
    REQUIRE(harness.open() == DKV_OK);
    void* whole = nullptr;
    REQUIRE(cudaMalloc(&whole, 1 << 20) == cudaSuccess);
    dkv_arena* keys = nullptr;
    REQUIRE(dkv_cuda_arena_adopt(static_cast<char*>(whole) + 4096, kPartBytes, &keys) == DKV_OK);

    REQUIRE_MESSAGE(harness.report(0, keys) == DKV_OK, dkv_last_error());

    std::optional<wire::EnvelopeT> message;
    auto const& region = registered(message, harness, 2);
    REQUIRE(region.source.AsCudaIpc() != nullptr);
    CHECK(region.source.AsCudaIpc()->offset == 4096);
    CHECK(region.source.AsCudaIpc()->allocation_bytes == 1 << 20);
    CHECK(region.bytes == kPartBytes);
    CHECK_FALSE(region.writable);
    dkv_arena_destroy(keys);
    CHECK(cudaFree(whole) == cudaSuccess);
}

TEST_CASE("host memory is refused on a GPU, and a released arena anywhere") {
    GpuHarness harness;
    REQUIRE(harness.open() == DKV_OK);
    dkv_arena* host = nullptr;
    REQUIRE(dkv_arena_create(kPartBytes, DKV_ARENA_DEFAULT, &host) == DKV_OK);
    auto const words = "layer 0 has rows in an arena on cpu, and this engine is on " + gpu();
    CHECK(harness.report(0, host) == DKV_INVALID_ARGUMENT);
    CHECK(contains(dkv_last_error(), words.c_str()));
    dkv_arena_destroy(host);

    dkv_arena* const released = device_arena(kPartBytes);
    REQUIRE(dkv_arena_release(released, 0, kPartBytes) == DKV_OK);
    CHECK(harness.report(0, released) == DKV_INVALID_ARGUMENT);
    CHECK(contains(dkv_last_error(), "layer 0 has rows in an arena that was released"));
    dkv_arena_destroy(released);
    CHECK(harness.report(0) == DKV_OK);
}

TEST_CASE("events are exchanged once, then named by index") {
    GpuHarness harness;
    REQUIRE(harness.open() == DKV_OK);

    REQUIRE_MESSAGE(harness.report(0) == DKV_OK, dkv_last_error());
    REQUIRE_MESSAGE(harness.report(1) == DKV_OK, dkv_last_error());

    auto const events = harness.sidecar->wait_for(wire::Body::RegisterEvents);
    REQUIRE(events);
    CHECK(events->body.AsRegisterEvents()->handles.size() == 16 * 64);
    CHECK(harness.sidecar->count(wire::Body::RegisterEvents) == 1);
    CHECK(harness.reported(2).event == 1);
    CHECK(harness.reported(2).timeline_value == 0);
}

TEST_CASE("where events cannot be shared, words of device memory count up instead") {
    GpuHarness harness;
    harness.sidecar->on(wire::Body::RegisterEvents, [](wire::EnvelopeT const&) {
        return std::optional(failure(wire::ErrorCode::Device, "no common /dev/shm"));
    });
    REQUIRE(harness.open() == DKV_OK);

    REQUIRE_MESSAGE(harness.report(0) == DKV_OK, dkv_last_error());
    REQUIRE_MESSAGE(harness.report(1) == DKV_OK, dkv_last_error());

    auto const second = harness.reported(2);
    CHECK(second.event == -1);
    CHECK(second.timeline_region != 0);
    CHECK(second.timeline_offset == 8);
    CHECK(second.timeline_value == 1);
    CHECK(harness.sidecar->count(wire::Body::RegisterEvents) == 1);
}

TEST_CASE("a plain layer_ready says that a GPU's rows are written") {
    GpuHarness harness;
    REQUIRE(harness.open() == DKV_OK);
    auto ready = sized<dkv_layer_ready>();
    ready.keys = GpuHarness::rows(harness.arena, 0, 2, kTokens);
    ready.values = GpuHarness::rows(harness.arena, kPartBytes, 2, kTokens);
    auto const queries = GpuHarness::rows(harness.arena, 2 * kPartBytes, 4, kWindow);
    ready.queries = &queries;

    REQUIRE(dkv_session_layer_ready(harness.session, &ready) == DKV_OK);

    CHECK(harness.reported().event == -1);
    CHECK(harness.sidecar->count(wire::Body::RegisterEvents) == 0);
}

TEST_CASE("device memory is freed when the sidecar has let go") {
    GpuHarness harness;
    REQUIRE(harness.open() == DKV_OK);
    dkv_arena* const keys = device_arena(kPartBytes);
    void const* const base = dkv_arena_base(keys);
    REQUIRE(harness.report(0, keys) == DKV_OK);
    std::atomic<bool> was_there = false;  // Written by the sidecar's thread.
    harness.sidecar->on(wire::Body::UnregisterRegion, [&](wire::EnvelopeT const&) {
        was_there = is_device_memory(base);
        return std::optional(body(wire::DoneT{}));
    });

    CHECK_MESSAGE(dkv_arena_release(keys, 0, kPartBytes) == DKV_OK, dkv_last_error());

    CHECK(was_there);
    CHECK_FALSE(is_device_memory(base));
    dkv_arena_destroy(keys);
}

TEST_CASE(
    "a sidecar that does not let go in time keeps the memory, and no longer than it is there") {
    GpuHarness harness(300);
    REQUIRE(harness.open() == DKV_OK);
    dkv_arena* const keys = device_arena(kPartBytes);
    void const* const base = dkv_arena_base(keys);
    REQUIRE(harness.report(0, keys) == DKV_OK);
    keep_silent_about_detach(*harness.sidecar);

    CHECK(dkv_arena_release(keys, 0, kPartBytes) == DKV_DEADLINE_EXCEEDED);
    CHECK(contains(dkv_last_error(), "has not let go of region"));
    CHECK(is_device_memory(base));
    CHECK(dkv_arena_allocated_bytes(keys) == 0);

    harness.sidecar.reset();
    dkv_session_close(harness.session, nullptr);
    harness.session = nullptr;
    dkv_engine_close(harness.engine);
    harness.engine = nullptr;
    CHECK_FALSE(is_device_memory(base));
    dkv_arena_destroy(keys);
}

TEST_CASE("a sidecar that is gone holds nothing back") {
    GpuHarness harness;
    REQUIRE(harness.open() == DKV_OK);
    dkv_arena* const keys = device_arena(kPartBytes);
    void const* const base = dkv_arena_base(keys);
    REQUIRE(harness.report(0, keys) == DKV_OK);

    harness.sidecar.reset();
    dkv_arena_destroy(keys);

    CHECK_FALSE(is_device_memory(base));
}

TEST_CASE("VMM memory goes to the sidecar as a descriptor, under the ticket of its message") {
    GpuHarness harness;
    TempDir folder;
    auto const path = folder / "fd.sock";
    UniqueFd const listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(listener.get(), 4) == 0);
    harness.sidecar->on(wire::Body::Hello, [&](wire::EnvelopeT const&) {
        wire::WelcomeT welcome;
        welcome.heartbeat_ms = 50;
        welcome.limits = std::make_unique<wire::LimitsT>();
        welcome.policy = std::make_unique<wire::PolicyT>();
        welcome.policy->name = "snapkv";
        welcome.fd_socket = path;
        return std::optional(body(std::move(welcome)));
    });
    harness.sidecar->set_boot_id(2);  // Attached anew: the Welcome is the test's.
    REQUIRE(harness.sidecar->wait_for(wire::Body::Hello, 2));
    REQUIRE(dkv_engine_wait_attached(harness.engine, 5000) == DKV_OK);
    REQUIRE_MESSAGE(harness.open() == DKV_OK, dkv_last_error());
    dkv_arena* const keys = device_arena(kPartBytes, DKV_CUDA_ARENA_VMM);

    REQUIRE_MESSAGE(harness.report(0, keys) == DKV_OK, dkv_last_error());

    UniqueFd const line(::accept(listener.get(), nullptr, nullptr));
    REQUIRE(line);
    std::array<std::uint64_t, 2> words{};
    auto const message = receive_fds(line.get(), std::as_writable_bytes(std::span(words)));
    REQUIRE(message.size == sizeof words);
    CHECK(message.fds.size() == 1);
    auto state = sized<dkv_engine_state>();
    REQUIRE(dkv_engine_get_state(harness.engine, &state) == DKV_OK);
    CHECK(words[0] == state.instance);
    std::optional<wire::EnvelopeT> second;
    auto const& region = registered(second, harness, 2);
    REQUIRE(region.source.AsCudaVmmFd() != nullptr);
    CHECK(region.source.AsCudaVmmFd()->ticket == words[1]);
    CHECK(region.source.AsCudaVmmFd()->allocation_bytes >= region.bytes);
    dkv_arena_destroy(keys);
}

TEST_CASE("VMM memory is refused where the sidecar takes no descriptors") {
    GpuHarness harness;
    REQUIRE(harness.open() == DKV_OK);
    dkv_arena* const keys = device_arena(kPartBytes, DKV_CUDA_ARENA_VMM);

    CHECK(harness.report(0, keys) == DKV_UNSUPPORTED);
    CHECK(contains(dkv_last_error(), "the sidecar takes no descriptors"));
    dkv_arena_destroy(keys);
}

TEST_CASE("what came of a layer is read from the device: its positions are in host memory") {
    GpuHarness harness;
    REQUIRE(harness.open() == DKV_OK);
    REQUIRE(harness.report(0) == DKV_OK);
    dkv_arena* destination = nullptr;
    REQUIRE(dkv_session_take_arena(harness.session, DKV_LAYER_PACKED, &destination) == DKV_OK);
    auto* const base = static_cast<std::byte*>(dkv_arena_base(destination));
    auto const packed = packed_layer(kGeometry, std::vector<std::uint32_t>{2, 1}, 0);
    std::int32_t const positions[] = {3, 63, 5};
    REQUIRE(dkv_cuda_copy_to_device(base + packed.positions_offset, positions, sizeof positions,
                                    nullptr) == DKV_OK);

    wire::LayerProgressT message;
    message.session =
        harness.sidecar->wait_for(wire::Body::OpenSession)->body.AsOpenSession()->session;
    message.stage = wire::LayerStage::Committed;
    message.lengths = {2, 1};
    harness.sidecar->say(body(std::move(message)));
    auto event = sized<dkv_event>();
    REQUIRE(dkv_session_poll(harness.session, &event, 5000) == DKV_OK);
    REQUIRE(event.kind == DKV_EVENT_PACKED);

    auto view = sized<dkv_layer_view>();
    REQUIRE(dkv_session_layer(harness.session, 0, &view) == DKV_OK);
    CHECK(view.keys == base + packed.keys_offset);
    CHECK(std::vector(view.positions, view.positions + 3) == std::vector{3, 63, 5});
    CHECK_FALSE(is_device_memory(view.positions));
    dkv_arena_destroy(destination);
}
