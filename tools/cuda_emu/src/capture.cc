#include "tools/cuda_emu/src/capture.h"

#include <algorithm>
#include <thread>
#include <vector>

namespace cudaemu {
namespace {

struct Capture {
    std::shared_ptr<Stream> stream;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread;
    bool spoiled = false;
};
std::vector<Capture>& captures() {
    static auto& all = *new std::vector<Capture>;
    return all;
}
Capture* capture_of(std::shared_ptr<Stream> const& stream) {
    auto const found = std::find_if(captures().begin(), captures().end(),
                                    [&](Capture const& one) { return one.stream == stream; });
    return found == captures().end() ? nullptr : &*found;
}

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

bool forbids(Capture const& capture) {
    if (capture.mode == cudaStreamCaptureModeRelaxed) return false;
    if (capture.thread == std::this_thread::get_id()) return true;
    return thread_mode == cudaStreamCaptureModeGlobal &&
           capture.mode == cudaStreamCaptureModeGlobal;
}

cudaError_t begin(std::shared_ptr<Stream> const& stream, cudaStreamCaptureMode mode) {
    if (stream == legacy_stream()) return cudaErrorStreamCaptureUnsupported;
    if (stream->capturing) return cudaErrorIllegalState;
    stream->capturing = true;
    captures().push_back({stream, mode, std::this_thread::get_id(), false});
    return cudaSuccess;
}

cudaError_t end(std::shared_ptr<Stream> const& stream, cudaGraph_t* graph) {
    Capture const* const found = capture_of(stream);
    if (found == nullptr) return cudaErrorIllegalState;
    bool const spoiled = found->spoiled;
    std::erase_if(captures(), [&](Capture const& one) { return one.stream == stream; });
    stream->capturing = false;
    if (graph != nullptr) *graph = nullptr;  // Nothing here launches one.
    return spoiled ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}

cudaError_t state(std::shared_ptr<Stream> const& stream, cudaStreamCaptureStatus* status) {
    if (status == nullptr) return cudaErrorInvalidValue;
    *status = cudaStreamCaptureStatusNone;
    Capture const* const found = capture_of(stream);
    if (found != nullptr)
        *status =
            found->spoiled ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    // The default stream would have to wait for those that capture.
    bool const waits = stream == legacy_stream() &&
                       std::any_of(captures().begin(), captures().end(), [](Capture const& one) {
                           return (one.stream->flags & cudaStreamNonBlocking) == 0;
                       });
    return waits ? cudaErrorStreamCaptureImplicit : cudaSuccess;
}

}  // namespace

cudaError_t meet_captures() {
    if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    bool met = false;
    for (Capture& capture : captures())
        if (forbids(capture)) met = capture.spoiled = true;
    return met ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    return call([&](Lock&) {
        auto const stream = stream_of(handle);
        return stream == nullptr ? cudaErrorInvalidResourceHandle : begin(stream, mode);
    });
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    return call([&](Lock&) {
        auto const stream = stream_of(handle);
        return stream == nullptr ? cudaErrorInvalidResourceHandle : end(stream, graph);
    });
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    return call([&](Lock&) {
        auto const stream = stream_of(handle);
        return stream == nullptr ? cudaErrorInvalidResourceHandle : state(stream, status);
    });
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    return call([&](Lock&) {
        if (mode == nullptr) return cudaErrorInvalidValue;
        std::swap(*mode, thread_mode);
        return cudaSuccess;
    });
}

}  // extern "C"
