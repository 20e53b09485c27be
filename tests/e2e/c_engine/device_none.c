#include "tests/e2e/c_engine/device.h"

dkv_status open_gpu_engine(char const* device, dkv_engine_options* wish, dkv_engine** engine) {
    (void)device;
    (void)wish;
    (void)engine;
    return DKV_UNSUPPORTED;
}

dkv_status make_gpu_arena(int kind, uint64_t bytes, dkv_arena** arena) {
    (void)kind;
    (void)bytes;
    (void)arena;
    return DKV_UNSUPPORTED;
}

dkv_status to_gpu(void* target, void const* source, uint64_t bytes) {
    (void)target;
    (void)source;
    (void)bytes;
    return DKV_UNSUPPORTED;
}

dkv_status from_gpu(void* target, void const* source, uint64_t bytes) {
    return to_gpu(target, source, bytes);
}

dkv_status report_behind_stream(dkv_session* session, dkv_layer_ready const* ready, int stalled) {
    (void)session;
    (void)ready;
    (void)stalled;
    return DKV_UNSUPPORTED;
}

void let_streams_go_on(void) {}

char const* gpu_error(void) {
    return "this engine was built without libdkv_cuda";
}
