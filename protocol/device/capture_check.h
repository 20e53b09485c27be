// For files that include CUDA's headers only.
#pragma once

#include "protocol/device/cuda_try.h"

namespace dkv::cuda {

/// Nothing happens on a stream that is being captured: an event that is recorded there keeps what
/// it said before, and the sidecar would read rows that are not written. Errors: BadState;
/// Device.
inline Result<void> check_not_captured(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    DKV_CUDA_TRY(cudaStreamIsCapturing(stream, &status));
    if (status == cudaStreamCaptureStatusNone) return {};
    return Error{ErrorCode::BadState,
                 "the stream is being captured into a CUDA graph: report layers outside of it"};
}

}  // namespace dkv::cuda
