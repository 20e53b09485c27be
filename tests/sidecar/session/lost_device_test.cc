// A kernel's fault takes the whole device from the process: on the emulation.
#if __has_include(<cudaemu/fault.h>)
#include <cudaemu/fault.h>

#include "tests/sidecar/session/fixture.h"
#include "tests/support/own_device_memory.h"

namespace dkv::test {
namespace {

/// An engine on the first device, in this process.
struct Lost : RunningTable {
    static constexpr std::uint64_t kBytes = 4096;

    Lost() : RunningTable(small_config(), Backends::find(small_config(), false).value()) {
        uuid = cuda::devices().value().front().uuid;
        REQUIRE(cuda::use_device(uuid));
        memory = own_device_memory(kBytes);
        own = lend_own(*memory, table.descriptors(), kEngine, 1);
        REQUIRE(table.hello(caller(), hello(kEngine)));
        REQUIRE(table.open_session(caller(), kEngine, request(1)));
    }
    ~Lost() { cudaemu::lose_device(cudaSuccess); }
    Lost(Lost const&) = delete;
    Lost& operator=(Lost const&) = delete;

    EngineHello hello(std::uint64_t instance) const {
        auto said = hello_of(instance);
        said.device = uuid;
        return said;
    }
    static OpenRequest request(std::uint64_t session) {
        OpenRequest request;
        request.session = session;
        request.prompt_tokens = LentPrompt::kTokens;
        return request;
    }
    Caller caller() { return {"peer", now, ++last_request, process}; }
    std::string lend() {
        auto const before = ears.answers.size();
        REQUIRE(table.register_region(caller(), kEngine, own, kBytes, false));
        await([&] { return ears.answers.size() > before; });
        return ears.answers.back();
    }

    std::uint64_t last_request = 0;
    std::string uuid;
    std::unique_ptr<cuda::DeviceMemory> memory;
    CudaVmmSource own;
};

TEST_CASE("a lost device fails its sessions, is said in the status, and nobody gets it again") {
    Lost t;
    CHECK(t.lend() == "RegisterRegion 3: region 1");
    CHECK(t.table.facts().backend_note.empty());

    cudaemu::lose_device(cudaErrorIllegalAddress);
    CHECK(t.lend().find("cudaErrorIllegalAddress") != std::string::npos);
    t.await([&] { return !t.ears.lines.empty(); });

    auto const why = "device " + t.uuid +
                     " is lost to this sidecar, which has to be started again: cudaStreamQuery: "
                     "cudaErrorIllegalAddress, an illegal memory access was encountered";
    CHECK(t.ears.lines.back() == "peer/1: failed: " + why);
    CHECK(t.table.facts().backend_note == why);
    CHECK(t.table.facts().last_error == why);
    auto const refusal =
        refused(t.table.open_session(t.caller(), TableFixture::kEngine, Lost::request(2)));
    CHECK(refusal.code == ErrorCode::Unsupported);
    CHECK(refusal.message == why);
    CHECK(refused(t.table.hello(t.caller(), t.hello(77))).message == why);
    auto on_cpu = TableFixture::hello_of(78);
    CHECK(t.table.hello(t.caller(), on_cpu));
}

TEST_CASE("an error of a device that goes on loses nothing") {
    Lost t;
    auto const before = t.ears.answers.size();
    REQUIRE(t.table.register_events(t.caller(), TableFixture::kEngine, {cuda::EventHandle{}}));
    t.await([&] { return t.ears.answers.size() > before; });
    CHECK(t.ears.answers.back().find("cudaIpcOpenEventHandle(") != std::string::npos);
    CHECK(t.lend().find(": region 1") != std::string::npos);  // Behind the look at the device.
    CHECK(t.table.facts().backend_note.empty());
    CHECK(t.table.open_session(t.caller(), TableFixture::kEngine, Lost::request(2)));
}

}  // namespace
}  // namespace dkv::test
#endif
