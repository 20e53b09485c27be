// Stream capture, as far as it can harm who does not know of it: what is queued on a capturing
// stream does not run, and calls that no graph can hold spoil the capture.
#pragma once

#include <memory>

#include "tools/cuda_emu/src/stream.h"

namespace cudaemu {

/// Begins every call that waits, allocates or frees: cudaErrorStreamCaptureUnsupported, and the
/// capture is spoiled, where one is under way and the calling thread did not say that it knows.
cudaError_t meet_captures();

/// As call(), for those.
template <class Body>
cudaError_t call_unsafe(Body body) {
    return call([&](Lock& lock) {
        cudaError_t const met = meet_captures();
        return met == cudaSuccess ? body(lock) : met;
    });
}

}  // namespace cudaemu
