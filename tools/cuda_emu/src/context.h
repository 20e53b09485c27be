// Contexts: each device's primary one, which exists from its first use, and a host's own.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

struct CUctx_st {
    int device = 0;
    bool is_primary = true;
};

namespace cudaemu {

/// The device's primary context, made now unless it is there.
CUcontext primary_context(int ordinal);
/// As cudaSetDevice since CUDA 12: makes the context at once.
void set_device(int ordinal);

CUresult get_current_context(CUcontext* context);
CUresult set_current_context(CUcontext context);
CUresult create_context(CUcontext* context, unsigned flags, CUdevice ordinal);
CUresult destroy_context(CUcontext context);
CUresult get_primary_state(CUdevice ordinal, unsigned* flags, int* active);

}  // namespace cudaemu
