// Engines whose cache is on a GPU, against the table itself. The engine is this process, so its
// memory comes by descriptor; two processes share theirs in tests/protocol/device and tests/e2e.
#include "protocol/device/device.h"

#include <poll.h>
#include <thread>
#include <vector>

#include "protocol/device/copy.h"
#include "protocol/device/events.h"
#include "protocol/device/memory.h"
#include "tests/protocol/device/exporter.h"
#include "tests/sidecar/session/fixture.h"
#include "tests/support/own_device_memory.h"

namespace dkv::test {
namespace {

constexpr char const* kUnknown = "GPU-ffffffff-ffff-ffff-ffff-ffffffffffff";

/// The fixture with a sidecar's own backends; the emulation's device, where there is one.
struct DeviceFixture : RunningTable {
    explicit DeviceFixture(Config const& settings = small_config())
        : RunningTable(settings, Backends::find(settings, false).value()) {}

    static bool has_device() {
        auto const all = cuda::devices();
        if (!all) MESSAGE("skipped: " << all.error().message);
        return static_cast<bool>(all);
    }
    void attach() {
        uuid = cuda::devices().value().front().uuid;
        REQUIRE(cuda::use_device(uuid));
        auto hello = hello_of(kEngine);
        hello.device = uuid;
        auto const welcomed = table.hello(caller(), hello);
        REQUIRE(welcomed);
        CHECK(welcomed.value().backend.find("cuda (") == 0);
    }
    Caller caller() { return {"peer", now, ++last_request, process}; }
    void give_events(std::vector<cuda::EventHandle> handles) {
        REQUIRE(table.register_events(caller(), kEngine, std::move(handles)));
        CHECK(await_answer() == "RegisterEvents " + std::to_string(last_request) + ": done");
    }
    /// The last line that is heard of a session whose first layer names that event.
    std::string outcome_of_event(std::uint64_t session, std::int32_t event) {
        open(session);
        auto request = layer(0);
        request.event = event;
        auto const before = ears.lines.size();
        REQUIRE(table.layer_ready(caller(), kEngine, session, request));
        await([&] { return ears.lines.size() > before; });
        auto const line = ears.lines.at(before);
        REQUIRE(table.close_session(caller(), kEngine, session, ""));
        return line;
    }
    std::string await_answer() {
        auto const before = ears.answers.size();
        await([&] { return ears.answers.size() > before; });
        return ears.answers.back();
    }
    std::uint64_t lend(cuda::DeviceMemory const& memory, bool writable) {
        auto const own = lend_own(memory, table.descriptors(), kEngine, ++last_ticket);
        auto const ask = [&] {
            return table.register_region(caller(), kEngine, own, memory.bytes().size(), writable);
        };
        auto answer = ask();
        while (!answer && answer.error().code == ErrorCode::LimitExceeded) {  // Of what waits.
            std::this_thread::yield();
            answer = ask();
        }
        REQUIRE(answer);
        REQUIRE(std::holds_alternative<Later>(answer.value()));
        auto const text = await_answer();
        auto const wanted = "RegisterRegion " + std::to_string(last_request) + ": region ";
        REQUIRE(text.find(wanted) == 0);
        return std::stoull(text.substr(wanted.size()));
    }
    void open(std::uint64_t session) {
        if (source == nullptr) {
            attach();
            source = own_device_memory(prompt.memory.bytes().size());
            REQUIRE(cuda::copy_to_device(source->bytes().data(), prompt.memory.bytes().data(),
                                         prompt.memory.bytes().size(), nullptr));
            source_region = lend(*source, false);
        }
        OpenRequest request;
        request.session = session;
        request.prompt_tokens = LentPrompt::kTokens;
        auto const opened = table.open_session(caller(), kEngine, request);
        REQUIRE(opened);
        auto const& needs = opened.value().needs;
        staging = own_device_memory(needs.staging_bytes);
        destination = own_device_memory(needs.destination_bytes);
        staging_region = lend(*staging, true);
        destination_region = lend(*destination, true);
        REQUIRE(table.bind_buffers(caller(), kEngine, session, staging_region, destination_region));
    }
    LayerRequest layer(std::uint32_t index) const { return layer_in(source_region, index); }

    std::uint64_t last_request = 0;
    std::uint64_t last_ticket = 0;
    LentPrompt prompt;
    std::string uuid;
    std::unique_ptr<cuda::DeviceMemory> source;
    std::unique_ptr<cuda::DeviceMemory> staging;
    std::unique_ptr<cuda::DeviceMemory> destination;
    std::uint64_t source_region = 0;
    std::uint64_t staging_region = 0;
    std::uint64_t destination_region = 0;
};

/// Sends the fixture's prompt, a layer at a time as `layer(index)` has it.
void check_keeps_what_a_cpu_keeps(DeviceFixture& t, auto const& layer) {
    TableFixture on_cpu;
    on_cpu.open(1);
    on_cpu.send_layers(1);
    on_cpu.await([&] { return on_cpu.ears.heard("peer/1: committed"); });

    for (std::uint32_t index = 0; index < LentPrompt::kLayers; ++index)
        REQUIRE(t.table.layer_ready(t.caller(), TableFixture::kEngine, 1, layer(index)));
    t.await([&] { return !t.ears.lines.empty() && t.ears.heard("peer/1: committed"); });
    CHECK(t.ears.last_outcome.lengths == on_cpu.ears.last_outcome.lengths);
    auto const bytes = t.ears.last_outcome.bytes_kept;
    CHECK(bytes == on_cpu.ears.last_outcome.bytes_kept);
    std::vector<std::byte> kept(bytes);
    REQUIRE(cuda::copy_to_host(kept.data(), t.destination->bytes().data(), bytes));
    CHECK(std::equal(kept.begin(), kept.end(), on_cpu.destination->bytes().begin()));
}

TEST_CASE("an engine on a GPU keeps what one on the CPU keeps") {
    if (!DeviceFixture::has_device()) return;
    DeviceFixture t;
    t.open(1);
    check_keeps_what_a_cpu_keeps(t, [&](std::uint32_t index) { return t.layer(index); });
}

TEST_CASE("a prompt in blocks of a GPU keeps what it keeps when its rows lie side by side") {
    if (!DeviceFixture::has_device()) return;
    DeviceFixture t;
    t.open(1);
    PagedPrompt const prompt(t.prompt);
    auto const bytes = prompt.memory.bytes();
    auto const pool = own_device_memory(bytes.size());
    REQUIRE(cuda::copy_to_device(pool->bytes().data(), bytes.data(), bytes.size(), nullptr));
    auto const region = t.lend(*pool, false);
    check_keeps_what_a_cpu_keeps(
        t, [&](std::uint32_t index) { return t.paged_layer_in(region, prompt, index); });
}

TEST_CASE("a detach of device memory is acknowledged when nothing uses it any more") {
    if (!DeviceFixture::has_device()) return;
    DeviceFixture t;
    t.open(1);
    auto const answer =
        t.table.unregister_region(t.caller(), TableFixture::kEngine, t.staging_region);
    REQUIRE(answer);
    CHECK(std::holds_alternative<Later>(answer.value()));
    auto const request = t.last_request;
    // The session still has it; its end lets go of it.
    t.table.finish_work(t.now);
    CHECK(t.ears.answers.back().find("UnregisterRegion") == std::string::npos);
    REQUIRE(t.table.close_session(t.caller(), TableFixture::kEngine, 1, ""));
    CHECK(t.await_answer() == "UnregisterRegion " + std::to_string(request) + ": done");
}

TEST_CASE("a layer waits for its timeline, and that waiting is told apart from work") {
    if (!DeviceFixture::has_device()) return;
    DeviceFixture t;
    t.open(1);
    auto const word = own_device_memory(64);
    auto const region = t.lend(*word, false);
    auto request = t.layer(0);
    request.timeline_region = region;
    request.timeline_offset = 8;
    request.timeline_value = 3;
    REQUIRE(t.table.layer_ready(t.caller(), TableFixture::kEngine, 1, request));
    REQUIRE(cuda::write_timeline(word->bytes().data() + 8, 3, nullptr));
    REQUIRE(cuda::wait_timeline(word->bytes().data() + 8, 3, std::chrono::seconds(20), nullptr,
                                nullptr));
    t.await([&] { return t.ears.heard("peer/1: layer 0 staged"); });
    auto const facts = t.table.sessions({}, t.now).value().front();
    CHECK(facts.wait_ns > 0);
    CHECK(facts.busy_ns > 0);
}

TEST_CASE("a signal that never comes fails its session at the deadline, and not the engine") {
    if (!DeviceFixture::has_device()) return;
    auto config = TableFixture::small_config();
    config.event_timeout_ms = 30;
    DeviceFixture t(config);
    t.open(1);
    auto request = t.layer(0);
    request.timeline_region = t.source_region;
    request.timeline_value = ~std::uint64_t{0};
    REQUIRE(t.table.layer_ready(t.caller(), TableFixture::kEngine, 1, request));
    t.await([&] { return !t.ears.lines.empty(); });
    CHECK(t.ears.lines.back() ==
          "peer/1: failed: layer 0: timeline value 18446744073709551615 did not happen within 30 "
          "ms");
    REQUIRE(t.table.close_session(t.caller(), TableFixture::kEngine, 1, ""));
    t.open(2);
}

TEST_CASE("an engine that dies while its event is waited for is let go of at once") {
    if (!DeviceFixture::has_device()) return;
    auto config = TableFixture::small_config();
    config.event_timeout_ms = 600'000;
    config.limits.jobs_queued_max = 1;
    // From before the wait begins to well within it: nothing says when a worker waits.
    for (int const turns : {0, 300, 3000}) {
        CAPTURE(turns);
        // It outlives the table: a word that is freed would end the wait, too.
        std::unique_ptr<cuda::DeviceMemory> word;
        DeviceFixture t(config);
        t.open(1);
        word = own_device_memory(64);
        // What is accepted says that the worker has begun with what came before.
        auto const send = [&](LayerRequest const& request) {
            while (true) {
                auto const sent =
                    t.table.layer_ready(t.caller(), TableFixture::kEngine, 1, request);
                if (sent) return;
                REQUIRE(sent.error().code == ErrorCode::LimitExceeded);
                std::this_thread::yield();
            }
        };
        auto request = t.layer(0);
        request.timeline_region = t.lend(*word, false);
        request.timeline_value = 1;
        send(request);
        send(t.layer(1));
        for (int turn = 0; turn < turns; ++turn)
            std::this_thread::yield();
        REQUIRE(t.table.goodbye(t.caller(), TableFixture::kEngine));
        CHECK(t.table.facts().mapped_bytes == 0);
    }  // The table waits for its workers here: ten minutes, if nobody told them.
}

TEST_CASE("a killed engine's memory is closed at once, though nobody said goodbye") {
    if (!DeviceFixture::has_device()) return;
    Exporter engine;
    auto const memory = engine.ipc(4096, 5);
    DeviceFixture t;
    t.process.pid = static_cast<pid_t>(engine.pid());
    auto hello = t.hello_of(t.kEngine);
    hello.device = cuda::devices().value().front().uuid;
    REQUIRE(t.table.hello(t.caller(), hello));
    REQUIRE(t.table.register_region(
        t.caller(), t.kEngine, CudaIpcSource{memory.handle, memory.allocation_bytes, memory.offset},
        4096, false));
    CHECK(t.await_answer().find(": region ") != std::string::npos);
    CHECK(cuda::opened_memory_count() == 1);

    engine.kill();
    pollfd gone{t.table.death_fd(), POLLIN, 0};
    REQUIRE(::poll(&gone, 1, 60'000) == 1);
    t.table.finish_work(t.now);

    CHECK(t.table.facts().instances == 0);
    while (cuda::opened_memory_count() != 0)  // Its worker closes it; ctest has the deadline.
        std::this_thread::yield();
}

TEST_CASE("an event is an index into what its engine registered last, in this generation") {
    if (!DeviceFixture::has_device()) return;
    Exporter engine;  // Events of this process would be refused: they come from a second one.
    auto const handle = engine.event();
    DeviceFixture t;
    t.open(1);
    t.give_events({handle});

    CHECK(t.outcome_of_event(2, 1) == "peer/2: failed: layer 0: event 1 of a pool of 1");
    CHECK(t.outcome_of_event(3, 0) == "peer/3: layer 0 staged");
    t.give_events({});
    CHECK(t.outcome_of_event(4, 0) ==
          "peer/4: failed: layer 0: event 0 is named, and this engine has registered none");

    t.give_events({handle});
    auto again = TableFixture::hello_of(TableFixture::kEngine);
    again.device = t.uuid;
    again.generation = 2;
    REQUIRE(t.table.hello(t.caller(), again));
    t.source_region = t.lend(*t.source, false);
    CHECK(t.outcome_of_event(5, 0) ==
          "peer/5: failed: layer 0: event 0 is named, and this engine has registered none");
}

TEST_CASE("events that cannot be opened leave an engine without any, and say why") {
    if (!DeviceFixture::has_device()) return;
    Exporter engine;
    auto const handle = engine.event();
    DeviceFixture t;
    t.open(1);
    t.give_events({handle});

    REQUIRE(
        t.table.register_events(t.caller(), TableFixture::kEngine, {handle, cuda::EventHandle{}}));
    CHECK(t.await_answer().find(": cudaIpcOpenEventHandle(") != std::string::npos);
    CHECK(t.outcome_of_event(2, 0) ==
          "peer/2: failed: layer 0: event 0 is named, and this engine has registered none");
    CHECK(refused(t.table.register_events(t.caller(), 99, {handle})).code ==
          ErrorCode::UnknownInstance);
}

TEST_CASE("a timeline is one 64-bit word of the device, and no event beside it") {
    if (!DeviceFixture::has_device()) return;
    DeviceFixture t;
    t.open(1);
    auto const word = own_device_memory(64);
    auto const region = t.lend(*word, false);
    auto const refusal = [&](auto const& change) {
        auto request = t.layer(0);
        request.timeline_region = region;
        request.timeline_value = 1;
        change(request);
        return refused(t.table.layer_ready(t.caller(), TableFixture::kEngine, 1, request)).message;
    };
    CHECK(refusal([](auto& request) { request.event = 0; }) ==
          "a layer has event 0 or a timeline, not both");
    CHECK(refusal([](auto& request) { request.timeline_offset = 4; }) ==
          "timeline at byte 4 is no 64-bit word of a region of 64 bytes");
    CHECK(refusal([](auto& request) { request.timeline_offset = 64; }) ==
          "timeline at byte 64 is no 64-bit word of a region of 64 bytes");
    CHECK(refusal([](auto& request) {
              request.timeline_offset = ~std::uint64_t{7};
          }).find("is no 64-bit word") != std::string::npos);
    CHECK(refusal([](auto& request) { request.timeline_region = 99; }) ==
          "no region 99 is registered");
}

TEST_CASE("rows of the host and of a device do not mix, by name") {
    if (!DeviceFixture::has_device()) return;
    DeviceFixture t;
    t.open(1);
    auto const host = t.table.register_region(
        t.caller(), TableFixture::kEngine,
        MemfdSource{own_pid(), t.prompt.memory.fd(), t.prompt.memory.inode()},
        t.prompt.memory.bytes().size(), false);
    REQUIRE(host);
    auto request = t.layer(0);
    request.values.region = std::get<std::uint64_t>(host.value());
    CHECK(refused(t.table.layer_ready(t.caller(), TableFixture::kEngine, 1, request)).message ==
          "values: host memory, and this engine's cache is on " + t.uuid);
    request = t.layer(0);
    request.event = 2;
    REQUIRE(t.table.layer_ready(t.caller(), TableFixture::kEngine, 1, request));
    t.await([&] { return !t.ears.lines.empty(); });
    CHECK(t.ears.lines.back() ==
          "peer/1: failed: layer 0: event 2 is named, and this engine has registered none");
}

TEST_CASE("an engine on a GPU that is not here is refused in one line, for good") {
    auto config = TableFixture::small_config();
    config.backend = "cpu";
    DeviceFixture t(config);
    auto hello = TableFixture::hello_of(TableFixture::kEngine);
    hello.device = kUnknown;
    auto const error = refused(t.table.hello(t.caller(), hello));
    CHECK(error.message == "this sidecar has no device '" + std::string(kUnknown) +
                               "': the sidecar was started with --backend cpu");
    CHECK(!is_retryable(error.code));
    if (!DeviceFixture::has_device()) return;
    DeviceFixture with_gpu;
    auto const other = refused(with_gpu.table.hello(with_gpu.caller(), hello));
    CHECK(other.message.find("': it has GPU-") != std::string::npos);
}

TEST_CASE("a CPU engine has no memory of a device, and no events") {
    TableFixture t;
    REQUIRE(t.table.hello(t.caller(), TableFixture::hello_of(TableFixture::kEngine)));
    CHECK(refused(t.table.register_region(t.caller(), TableFixture::kEngine, CudaIpcSource{}, 64,
                                          false))
              .message ==
          "CUDA memory by IPC handle at byte 0 of 0: this engine said that its cache is on the "
          "cpu");
    CHECK(refused(t.table.register_events(t.caller(), TableFixture::kEngine, {})).code ==
          ErrorCode::Unsupported);
}

}  // namespace
}  // namespace dkv::test
