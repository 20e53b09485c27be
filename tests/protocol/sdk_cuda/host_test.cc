// What a host does with CUDA beside dkv goes on: its contexts, its captures, its streams.
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include <cuda.h>
#include <cudaTypedefs.h>

#include "tests/protocol/sdk_cuda/harness.h"

using namespace dkv;
using namespace dkv::test;

namespace {

CUcontext current_context() {
    CUcontext context = nullptr;
    auto const get = driver<PFN_cuCtxGetCurrent_v4000>("cuCtxGetCurrent", 4000);
    CHECK(get(&context) == CUDA_SUCCESS);
    return context;
}

/// A stream whose work is not through before the test says so.
class BusyStream {
public:
    BusyStream() {
        REQUIRE(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess);
        // From a thread of its own: on the emulation that is who runs it, on a lazy stream
        // because it waits.
        thread_ = std::thread([this] {
            cudaLaunchHostFunc(
                stream_, [](void* self) { static_cast<BusyStream*>(self)->wait(); }, this);
            static_cast<void>(cudaStreamSynchronize(stream_));
        });
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return begun_; });
    }
    BusyStream(BusyStream const&) = delete;
    BusyStream& operator=(BusyStream const&) = delete;
    ~BusyStream() {
        finish();
        CHECK(cudaStreamSynchronize(stream_) == cudaSuccess);
        CHECK(cudaStreamDestroy(stream_) == cudaSuccess);
    }
    cudaStream_t get() const { return stream_; }
    void finish() {
        {
            std::lock_guard const lock(mutex_);
            may_end_ = true;
        }
        changed_.notify_all();
        if (thread_.joinable()) thread_.join();
    }

private:
    void wait() {
        std::unique_lock lock(mutex_);
        begun_ = true;
        changed_.notify_all();
        changed_.wait(lock, [this] { return may_end_; });
    }

    cudaStream_t stream_ = nullptr;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool begun_ = false;
    bool may_end_ = false;
    std::thread thread_;
};

/// Sessions one after the other, whose memory stays: freeing it would wait for the busy stream.
class Sessions {
public:
    explicit Sessions(GpuHarness& harness) : harness_(harness) {}
    Sessions(Sessions const&) = delete;
    Sessions& operator=(Sessions const&) = delete;
    ~Sessions() {
        for (dkv_arena* const arena : kept_)
            dkv_arena_destroy(arena);
    }
    void open() {
        close();
        REQUIRE_MESSAGE(harness_.open() == DKV_OK, dkv_last_error());
        dkv_arena* arena = nullptr;
        REQUIRE(dkv_session_take_arena(harness_.session, DKV_LAYER_PACKED, &arena) == DKV_OK);
        kept_.push_back(arena);
    }
    void report_two_layers(cudaStream_t stream = nullptr) {
        open();
        REQUIRE_MESSAGE(harness_.report(0, nullptr, stream) == DKV_OK, dkv_last_error());
        REQUIRE_MESSAGE(harness_.report(1, nullptr, stream) == DKV_OK, dkv_last_error());
    }

private:
    void close() {
        dkv_session_close(harness_.session, nullptr);
        harness_.session = nullptr;
    }

    GpuHarness& harness_;
    std::vector<dkv_arena*> kept_;
};

}  // namespace

TEST_CASE("a thread that has no context has none afterwards; a context of the host's own is back") {
    std::thread([] {
        dkv_arena* arena = device_arena(4096);
        CHECK(current_context() == nullptr);
        std::array<char, 4> read{};
        CHECK(dkv_cuda_copy_to_host(read.data(), dkv_arena_base(arena), 4) == DKV_OK);
        CHECK(current_context() == nullptr);

        CUcontext own = nullptr;
        REQUIRE(driver<PFN_cuCtxCreate_v3020>("cuCtxCreate", 3020)(&own, 0, 0) == CUDA_SUCCESS);
        dkv_arena* lent = nullptr;
        CHECK(dkv_cuda_arena_adopt(dkv_arena_base(arena), 64, &lent) == DKV_OK);
        dkv_arena_destroy(lent);
        CHECK(current_context() == own);
        dkv_arena_destroy(arena);
        CHECK(current_context() == own);
        CHECK(driver<PFN_cuCtxDestroy_v4000>("cuCtxDestroy", 4000)(own) == CUDA_SUCCESS);
    }).join();
}

TEST_CASE(
    "a graph that the host captures is not spoiled, and a layer is not reported inside of it") {
    GpuHarness harness;
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);

    REQUIRE_MESSAGE(harness.open() == DKV_OK, dkv_last_error());
    dkv_arena_destroy(device_arena(4096));
    CHECK(harness.report(0, nullptr, stream) == DKV_BAD_STATE);
    CHECK(contains(dkv_last_error(), "captured into a CUDA graph: report layers outside of it"));

    CHECK(cudaStreamEndCapture(stream, nullptr) == cudaSuccess);
    CHECK(harness.sidecar->count(wire::Body::LayerReady) == 0);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("nor is a layer that words stand for reported inside of a capture") {
    GpuHarness harness;
    harness.sidecar->on(wire::Body::RegisterEvents, [](wire::EnvelopeT const&) {
        return std::optional(failure(wire::ErrorCode::Device, "no common /dev/shm"));
    });
    REQUIRE(harness.open() == DKV_OK);
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(harness.report(0, nullptr, stream) == DKV_BAD_STATE);
    CHECK(cudaStreamEndCapture(stream, nullptr) == cudaSuccess);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("memory is made and zeroed without waiting for the host's streams") {
    cudaStream_t blocking = nullptr;
    REQUIRE(cudaStreamCreate(&blocking) == cudaSuccess);
    BusyStream busy;
    void* other = nullptr;
    REQUIRE(cudaMalloc(&other, 64) == cudaSuccess);
    // The default stream waits for this one, which waits for the busy one.
    cudaEvent_t event = nullptr;
    REQUIRE(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
    REQUIRE(cudaEventRecord(event, busy.get()) == cudaSuccess);
    REQUIRE(cudaStreamWaitEvent(blocking, event, 0) == cudaSuccess);

    dkv_arena* const arena = device_arena(4096);
    CHECK(cudaEventQuery(event) == cudaErrorNotReady);

    busy.finish();
    dkv_arena_destroy(arena);
    CHECK(cudaFree(other) == cudaSuccess);
    CHECK(cudaEventDestroy(event) == cudaSuccess);
    CHECK(cudaStreamDestroy(blocking) == cudaSuccess);
}

TEST_CASE("an event that is still to happen is not recorded again, on whatever stream") {
    GpuHarness harness;
    Sessions sessions(harness);
    BusyStream busy;
    sessions.open();
    REQUIRE_MESSAGE(harness.report(0, nullptr, busy.get()) == DKV_OK, dkv_last_error());
    auto const late = harness.reported(1).event;

    std::multiset<std::int32_t> used;
    for (std::size_t session = 0; session < 10; ++session) {
        sessions.report_two_layers();
        used.insert(harness.reported(2 * session + 2).event);
        used.insert(harness.reported(2 * session + 3).event);
    }

    CHECK(used.count(late) == 0);
    CHECK(used.size() == 20);
    CHECK(std::set(used.begin(), used.end()).size() == 15);  // They went round all the same.
}

TEST_CASE("a word that is still to be written is not written by another stream") {
    GpuHarness harness;
    harness.sidecar->on(wire::Body::RegisterEvents, [](wire::EnvelopeT const&) {
        return std::optional(failure(wire::ErrorCode::Device, "no common /dev/shm"));
    });
    Sessions sessions(harness);
    BusyStream busy;
    sessions.open();
    REQUIRE_MESSAGE(harness.report(0, nullptr, busy.get()) == DKV_OK, dkv_last_error());
    auto const late = harness.reported(1).timeline_offset;

    std::uint64_t highest = 0;
    for (std::size_t session = 0; session < 10; ++session) {
        sessions.report_two_layers();
        auto const last = harness.reported(2 * session + 3);
        CHECK(last.timeline_offset != late);
        highest = std::max(highest, last.timeline_value);
    }

    CHECK(highest == 2);  // 20 values in 15 words.
}

TEST_CASE("with every event in flight a layer is refused at the deadline, and none is lost") {
    GpuHarness harness(300);
    Sessions sessions(harness);
    {
        BusyStream busy;
        for (int session = 0; session < 8; ++session)
            sessions.report_two_layers(busy.get());
        sessions.open();

        CHECK(harness.report(0) == DKV_DEADLINE_EXCEEDED);
        CHECK(contains(dkv_last_error(), "one of 16 events in flight did not happen within "));
    }
    sessions.report_two_layers();
}
