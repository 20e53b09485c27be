#define _GNU_SOURCE /* RTLD_DEFAULT */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
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

/* A stream that waits for a word of device memory, which nobody counts up before let_streams_go_on.
 * By the driver's functions, found where the host has them: no CUDA header is needed here. */
static dkv_arena* awaited_word;

static void* stream_that_stalls(void) {
    typedef int (*CreateStream)(void** stream, unsigned flags);
    typedef int (*FindFunction)(char const* name, void** found, unsigned version,
                                unsigned long long flags, int* known);
    typedef int (*WaitValue)(void* stream, unsigned long long address, uint64_t value,
                             unsigned flags);
    CreateStream create = NULL;
    FindFunction find = NULL;
    WaitValue wait_value = NULL;
    void* stream = NULL;
    int known = 0;
    unsigned const non_blocking = 1;
    *(void**)&create = dlsym(RTLD_DEFAULT, "cudaStreamCreateWithFlags");
    *(void**)&find = dlsym(RTLD_DEFAULT, "cudaGetDriverEntryPointByVersion");
    if (create == NULL || find == NULL || create(&stream, non_blocking) != 0 ||
        find("cuStreamWaitValue64", (void**)&wait_value, 11070, 0, &known) != 0 ||
        wait_value == NULL || make_gpu_arena(0, sizeof(uint64_t), &awaited_word) != DKV_OK ||
        wait_value(stream, (unsigned long long)(uintptr_t)dkv_arena_base(awaited_word), 1, 0) !=
            0) {
        fprintf(stderr, "dkv_c_engine: no stream that can be stalled\n");
        exit(1);
    }
    return stream;
}

dkv_status report_behind_stream(dkv_session* session, dkv_layer_ready const* ready, int stalled) {
    return dkv_cuda_layer_ready(session, ready, stalled ? stream_that_stalls() : NULL);
}

void let_streams_go_on(void) {
    uint64_t const value = 1;
    if (awaited_word == NULL) return;
    to_gpu(dkv_arena_base(awaited_word), &value, sizeof value);
    dkv_arena_destroy(awaited_word);
    awaited_word = NULL;
}

char const* gpu_error(void) {
    return dkv_last_error();
}
