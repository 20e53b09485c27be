#include "tools/cuda_emu/src/context.h"

#include <array>
#include <atomic>
#include <cstdint>

#include "tools/cuda_emu/src/runtime.h"

namespace cudaemu {
namespace {

struct Primary {
    CUctx_st context;
    std::atomic<bool> active{false};
};
Primary& primary(int ordinal) {
    static auto& all = *new std::array<Primary, 16>;
    return all[static_cast<std::size_t>(ordinal)];
}

thread_local CUcontext current = nullptr;

bool is_ordinal(int ordinal) {
    return ordinal >= 0 && ordinal < device_count();
}

}  // namespace

bool has_context() {
    return current != nullptr;
}

void bind_context() {
    if (current == nullptr) set_device(0);
}

CUcontext primary_context(int ordinal) {
    Primary& found = primary(ordinal);
    found.context.device = ordinal;
    found.active = true;
    return &found.context;
}

void set_device(int ordinal) {
    current = primary_context(ordinal);
}

int current_device() {
    return current == nullptr ? 0 : current->device;
}

CUresult get_current_context(CUcontext* context) {
    return drive([&](Lock&) {
        if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *context = current;
        return CUDA_SUCCESS;
    });
}

CUresult set_current_context(CUcontext context) {
    return drive([&](Lock&) {
        current = context;
        return CUDA_SUCCESS;
    });
}

CUresult create_context(CUcontext* context, unsigned /*flags*/, CUdevice ordinal) {
    return drive([&](Lock&) {
        if (context == nullptr || !is_ordinal(ordinal)) return CUDA_ERROR_INVALID_VALUE;
        *context = current = new CUctx_st{ordinal, false};
        return CUDA_SUCCESS;
    });
}

CUresult destroy_context(CUcontext context) {
    return drive([&](Lock&) {
        if (context == nullptr || context->is_primary) return CUDA_ERROR_INVALID_CONTEXT;
        if (current == context) current = nullptr;
        delete context;
        return CUDA_SUCCESS;
    });
}

CUresult get_primary_state(CUdevice ordinal, unsigned* flags, int* active) {
    return drive([&](Lock&) {
        if (!is_ordinal(ordinal) || flags == nullptr || active == nullptr)
            return CUDA_ERROR_INVALID_VALUE;
        *flags = 0;
        *active = primary(ordinal).active ? 1 : 0;
        return CUDA_SUCCESS;
    });
}

}  // namespace cudaemu
