// Contexts, captures and lost devices: what the emulation is as strict about as a driver.
#include <thread>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cudaemu/fault.h>

#include "tests/tools/cuda_emu/launch.h"

namespace dkv::test {
namespace {

template <class Function>
Function driver(char const* name, unsigned version) {
    void* found = nullptr;
    REQUIRE(cudaGetDriverEntryPointByVersion(name, &found, version, 0, nullptr) == cudaSuccess);
    return reinterpret_cast<Function>(found);
}

/// On a thread that has not used CUDA.
template <class Body>
void on_new_thread(Body const& body) {
    std::thread(body).join();
}

CUcontext current() {
    CUcontext context = nullptr;
    auto const get = driver<PFN_cuCtxGetCurrent_v4000>("cuCtxGetCurrent", 4000);
    CHECK(get(&context) == CUDA_SUCCESS);
    return context;
}

TEST_CASE("a driver call that needs a context finds none on a new thread; the runtime makes one") {
    OnDevice<int> const memory(1);
    on_new_thread([&] {
        auto const range = driver<PFN_cuMemGetAddressRange_v3020>("cuMemGetAddressRange", 3020);
        auto const at = reinterpret_cast<CUdeviceptr>(memory.data());
        CUdeviceptr base = 0;
        CHECK(current() == nullptr);
        CHECK(range(&base, nullptr, at) == CUDA_ERROR_INVALID_CONTEXT);
        cudaPointerAttributes attributes{};
        CHECK(cudaPointerGetAttributes(&attributes, memory.data()) == cudaSuccess);
        CHECK(current() != nullptr);
        CHECK(range(&base, nullptr, at) == CUDA_SUCCESS);
        CHECK(base == at);
    });
}

TEST_CASE("a context of the host's own is current until cudaSetDevice makes the primary one") {
    on_new_thread([] {
        CUcontext own = nullptr;
        REQUIRE(driver<PFN_cuCtxCreate_v3020>("cuCtxCreate", 3020)(&own, 0, 0) == CUDA_SUCCESS);
        CHECK(current() == own);
        CHECK(cudaSetDevice(0) == cudaSuccess);
        CHECK(current() != own);
        CHECK(driver<PFN_cuCtxSetCurrent_v4000>("cuCtxSetCurrent", 4000)(own) == CUDA_SUCCESS);
        CHECK(current() == own);
        CHECK(driver<PFN_cuCtxDestroy_v4000>("cuCtxDestroy", 4000)(own) == CUDA_SUCCESS);
        CHECK(current() == nullptr);
    });
}

class Capture {
public:
    explicit Capture(cudaStreamCaptureMode mode) {
        REQUIRE(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking) == cudaSuccess);
        REQUIRE(cudaStreamBeginCapture(stream_, mode) == cudaSuccess);
    }
    Capture(Capture const&) = delete;
    Capture& operator=(Capture const&) = delete;
    ~Capture() { CHECK(cudaStreamDestroy(stream_) == cudaSuccess); }
    cudaStream_t stream() const { return stream_; }
    cudaError_t end() { return cudaStreamEndCapture(stream_, nullptr); }

private:
    cudaStream_t stream_ = nullptr;
};

TEST_CASE("what a capturing stream is given does not run, and an event recorded there stays") {
    OnDevice<int> const memory(std::vector<int>{7});
    cudaEvent_t event = nullptr;
    REQUIRE(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
    Capture capture(cudaStreamCaptureModeRelaxed);
    cudaStreamCaptureStatus status{};
    CHECK(cudaStreamIsCapturing(capture.stream(), &status) == cudaSuccess);
    CHECK(status == cudaStreamCaptureStatusActive);

    CHECK(cudaMemsetAsync(memory.data(), 0, 4, capture.stream()) == cudaSuccess);
    CHECK(cudaEventRecord(event, capture.stream()) == cudaSuccess);

    CHECK(cudaEventQuery(event) == cudaSuccess);
    CHECK(cudaStreamSynchronize(capture.stream()) == cudaErrorStreamCaptureUnsupported);
    CHECK(capture.end() == cudaSuccess);
    CHECK(memory.fetch() == std::vector<int>{7});
    CHECK(cudaEventDestroy(event) == cudaSuccess);
    static_cast<void>(cudaGetLastError());
}

TEST_CASE("a global capture is spoiled by any thread's cudaMalloc, unless that thread is relaxed") {
    auto const allocate = [](cudaStreamCaptureMode mode) {
        cudaError_t result = cudaSuccess;
        on_new_thread([&] {
            CHECK(cudaThreadExchangeStreamCaptureMode(&mode) == cudaSuccess);
            CHECK(mode == cudaStreamCaptureModeGlobal);
            void* memory = nullptr;
            result = cudaMalloc(&memory, 64);
            if (result == cudaSuccess) CHECK(cudaFree(memory) == cudaSuccess);
        });
        return result;
    };
    Capture spoiled(cudaStreamCaptureModeGlobal);
    CHECK(allocate(cudaStreamCaptureModeRelaxed) == cudaSuccess);
    CHECK(allocate(cudaStreamCaptureModeGlobal) == cudaErrorStreamCaptureUnsupported);
    CHECK(spoiled.end() == cudaErrorStreamCaptureInvalidated);

    Capture local(cudaStreamCaptureModeThreadLocal);
    CHECK(allocate(cudaStreamCaptureModeGlobal) == cudaSuccess);
    CHECK(local.end() == cudaSuccess);
    static_cast<void>(cudaGetLastError());
}

TEST_CASE("a lost device fails every call with the kernel's error") {
    OnDevice<int> const memory(1);
    cudaemu::lose_device(cudaErrorIllegalAddress);
    CHECK(cudaDeviceSynchronize() == cudaErrorIllegalAddress);
    void* other = nullptr;
    CHECK(cudaMalloc(&other, 4) == cudaErrorIllegalAddress);
    CHECK(cudaIpcCloseMemHandle(memory.data()) == cudaErrorIllegalAddress);
    cudaemu::lose_device(cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    static_cast<void>(cudaGetLastError());
}

}  // namespace
}  // namespace dkv::test
