#define _GNU_SOURCE /* RTLD_DEFAULT */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "protocol/sdk/dkv_cuda.h"
#include "tests/e2e/c_engine/device.h"

static char device_uuid[48];

dkv_status open_gpu_engine(char const* device, dkv_engine_options* wish, dkv_engine** engine) {
    snprintf(device_uuid, sizeof device_uuid, "%s", device);
    if (strcmp(device, "cuda") == 0) {
        dkv_cuda_device first = {.struct_bytes = sizeof first};
        dkv_status const status = dkv_cuda_get_device(0, &first);
        if (status != DKV_OK) return status;
        memcpy(device_uuid, first.uuid, sizeof device_uuid);
    }
    wish->device = device_uuid;
    return dkv_cuda_engine_open(wish, engine);
}

dkv_status make_gpu_arena(int kind, uint64_t bytes, dkv_arena** arena) {
    return dkv_cuda_arena_create(device_uuid, bytes, (dkv_cuda_arena_kind)kind, arena);
}

dkv_status to_gpu(void* target, void const* source, uint64_t bytes) {
    return dkv_cuda_copy_to_device(target, source, bytes, NULL);
}

dkv_status from_gpu(void* target, void const* source, uint64_t bytes) {
    return dkv_cuda_copy_to_host(target, source, bytes);
}

/* With lazy streams the emulation does what is queued when somebody waits for it, and nobody does.
 */
static void* stream_that_stalls(void) {
    typedef int (*CreateStream)(void** stream, unsigned flags);
    void* stream = NULL;
    CreateStream create = NULL;
    *(void**)&create = dlsym(RTLD_DEFAULT, "cudaStreamCreateWithFlags");
    unsigned const non_blocking = 1;
    if (create == NULL || create(&stream, non_blocking) != 0) return NULL;
    return stream;
}

dkv_status report_behind_stream(dkv_session* session, dkv_layer_ready const* ready, int stalled) {
    return dkv_cuda_layer_ready(session, ready, stalled ? stream_that_stalls() : NULL);
}

char const* gpu_error(void) {
    return dkv_last_error();
}
