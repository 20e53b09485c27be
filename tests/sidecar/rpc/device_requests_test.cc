// What an engine on a GPU asks: refusals at once, and answers that come when its worker is through.
#include <array>

#include "protocol/device/device.h"
#include "protocol/device/events.h"
#include "tests/sidecar/rpc/server_fixture.h"
#include "tests/support/own_device_memory.h"

namespace dkv::rpc {
namespace {

/// A sidecar that sees the device, and the engine on it.
struct DeviceServer : ServerFixture {
    explicit DeviceServer(Config settings = {})
        : ServerFixture(settings, Backends::find(settings, false).value()) {}
    static bool has_device() {
        auto const all = cuda::devices();
        if (!all) MESSAGE("skipped: " << all.error().message);
        return static_cast<bool>(all);
    }
    static wire::HelloT hello(std::uint32_t generation = 1) {
        auto hello = ServerFixture::hello();
        hello.generation = generation;
        hello.device = cuda::devices().value().front().uuid;
        return hello;
    }
    void attach(std::uint32_t generation = 1) {
        REQUIRE(ask(hello(generation)).type == Body::Welcome);
    }
};

wire::RegisterEventsT events(std::size_t bytes) {
    auto message = of_engine<wire::RegisterEventsT>();
    message.handles.resize(bytes);
    return message;
}

template <class Source>
wire::RegisterRegionT region(Source source) {
    auto message = of_engine<wire::RegisterRegionT>();
    message.source.Set(std::move(source));
    message.bytes = 64;
    return message;
}

TEST_CASE("an engine on the cpu has no events, and no device memory") {
    ServerFixture s;
    s.attach();

    auto const refused = s.ask_in_vain(events(64));
    CHECK(refused.code == wire::ErrorCode::Unsupported);
    CHECK(!refused.retryable);
    CHECK(refused.message == "an engine on the cpu has no events");
    wire::CudaIpcT ipc;
    ipc.handle.resize(64);
    CHECK(s.ask_in_vain(region(std::move(ipc))).message ==
          "CUDA memory by IPC handle at byte 0 of 0: this engine said that its cache is on the "
          "cpu");
    auto ready = ServerFixture::layer_ready();
    ready.event = -2;
    CHECK(s.ask_in_vain(std::move(ready)).message == "event -2 is neither an index nor -1");
}

TEST_CASE("handles have 64 bytes, each of them, whatever they are handles of") {
    ServerFixture s;
    s.attach();

    for (std::size_t const bytes : {1U, 63U, 65U, 127U}) {
        auto const refused = s.ask_in_vain(events(bytes));
        CHECK(refused.code == wire::ErrorCode::InvalidArgument);
        CHECK(refused.message ==
              "event handles have " + std::to_string(bytes) + " bytes, which is no multiple of 64");
    }
    wire::CudaIpcT ipc;
    ipc.handle.resize(63);
    CHECK(s.ask_in_vain(region(std::move(ipc))).message == "handle has 63 bytes, not 64");
    wire::CudaPoolT pool;
    pool.pointer.resize(65);
    CHECK(s.ask_in_vain(region(std::move(pool))).message == "pointer has 65 bytes, not 64");
}

TEST_CASE("a kind of region that was removed is refused by name, and the sidecar goes on") {
    ServerFixture s;
    s.attach();

    auto const refused = s.ask_in_vain(region(wire::InprocT()));

    CHECK(refused.code == wire::ErrorCode::Unsupported);
    CHECK(!refused.retryable);
    CHECK(refused.message ==
          "region kind Inproc (6) was removed: lend shared memory, or CUDA memory by handle or "
          "descriptor");
    CHECK(s.ask(of_engine<wire::HeartbeatT>()).type == Body::Done);
}

TEST_CASE("an engine on a GPU that the sidecar has not is refused for good") {
    Config config;
    config.backend = "cpu";
    DeviceServer s(config);
    auto hello = ServerFixture::hello();
    hello.device = "GPU-ffffffff-ffff-ffff-ffff-ffffffffffff";

    auto const refused = s.ask_in_vain(std::move(hello));

    CHECK(refused.code == wire::ErrorCode::Unsupported);
    CHECK(!refused.retryable);
    CHECK(refused.message ==
          "this sidecar has no device 'GPU-ffffffff-ffff-ffff-ffff-ffffffffffff': the sidecar was "
          "started with --backend cpu");
}

TEST_CASE("an engine has 4096 events at most, and as many requests waiting as any other") {
    if (!DeviceServer::has_device()) return;
    Config config;
    config.limits.jobs_queued_max = 0;
    DeviceServer s(config);
    s.attach();

    auto const refused = s.ask_in_vain(events(4097 * sizeof(cuda::EventHandle)));
    CHECK(refused.code == wire::ErrorCode::LimitExceeded);
    CHECK(refused.message == "4097 events; the limit is 4096");
    CHECK(s.ask_in_vain(events(64)).message ==
          "this engine has 0 requests waiting, which is the limit");
}

TEST_CASE("events are opened by the engine's worker: the answer comes late, to who asked") {
    if (!DeviceServer::has_device()) return;
    DeviceServer s;
    s.attach();

    s.ask_later(events(2 * sizeof(cuda::EventHandle)), 21);

    auto const& refused = s.late_answer();
    CHECK(refused.id == 21);
    CHECK(refused.boot_id == kBoot);
    REQUIRE(refused.body.type == Body::Failure);
    CHECK(refused.body.AsFailure()->code == wire::ErrorCode::Device);
    CHECK(refused.body.AsFailure()->message.find("cudaIpcOpenEventHandle") != std::string::npos);
    auto& status = s.ask(wire::GetStatusT());
    CHECK(status.AsStatusInfo()->errors_total == 1);

    s.ask_later(events(0), 23);
    auto const& done = s.late_answer();
    CHECK(done.id == 23);
    CHECK(done.body.type == Body::Done);
}

TEST_CASE("events of the sidecar's own process are refused by CUDA's code 201") {
    if (!DeviceServer::has_device()) return;
    DeviceServer s;
    s.attach();
    REQUIRE(cuda::use_device(cuda::devices().value().front().uuid));
    auto const own = cuda::make_event_pool(1).value();
    auto const handle = own->handles().front();
    auto message = events(handle.size());
    std::memcpy(message.handles.data(), handle.data(), handle.size());

    s.ask_later(std::move(message));

    auto const& body = s.late_answer().body;
    REQUIRE(body.type == Body::Failure);
    CHECK(body.AsFailure()->message.find("cudaErrorDeviceUninitialized") != std::string::npos);
}

TEST_CASE("memory that was opened for an engine that is gone, or began anew, is nobody's") {
    if (!DeviceServer::has_device()) return;
    REQUIRE(cuda::use_device(cuda::devices().value().front().uuid));
    auto const memory = test::own_device_memory(64);
    for (bool const began_anew : {false, true}) {
        CAPTURE(began_anew);
        DeviceServer s;
        s.attach();
        auto const lent = test::lend_own(*memory, s.server.descriptors(), kEngine, 1);
        wire::CudaVmmFdT own;
        own.ticket = lent.ticket;
        own.allocation_bytes = lent.allocation_bytes;
        own.offset = lent.offset;
        s.deliver(region(own), 31, "peer");
        s.await_wake();  // It is open, and the loop has not heard of it.
        if (began_anew)
            s.attach(2);
        else
            REQUIRE(s.ask(of_engine<wire::GoodbyeT>()).type == Body::Done);
        s.outbox.letters.clear();
        s.server.on_wake(s.now);

        auto const& late = s.only_answer("peer");
        CHECK(late.id == 31);
        REQUIRE(late.body.type == Body::Failure);
        CHECK(late.body.AsFailure()->code == wire::ErrorCode::UnknownInstance);
        CHECK(late.body.AsFailure()->message == "the engine went away meanwhile");
        CHECK(s.ask(wire::GetStatusT()).AsStatusInfo()->mapped_bytes == 0);
    }
}

TEST_CASE("a generation that is over has nothing to say") {
    if (!DeviceServer::has_device()) return;
    DeviceServer s;
    s.attach(2);

    auto const refused = s.ask_in_vain(DeviceServer::hello(1));

    CHECK(refused.code == wire::ErrorCode::BadState);
    CHECK(refused.message == "generation 1 of engine 0x000000000000000b comes after generation 2");
}

}  // namespace
}  // namespace dkv::rpc
