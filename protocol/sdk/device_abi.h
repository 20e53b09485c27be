/* device_abi.h: what libdkv_cuda gives libdkv, so that libdkv knows of devices and nothing of CUDA.
 * Between the two libraries only: hosts use dkv_cuda.h. Both are of one version.
 *
 * Functions return a dkv_status; on anything but DKV_OK they have written one line to `error`. None
 * throws. Each leaves the calling thread's current device as it was. */
#ifndef DKV_DEVICE_ABI_H
#define DKV_DEVICE_ABI_H

#include "protocol/sdk/dkv.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DKV_DEVICE_ERROR_BYTES = 512, DKV_DEVICE_HANDLE_BYTES = 64, DKV_DEVICE_WORDS = 256 };

typedef enum dkv_device_source_kind {
    DKV_DEVICE_IPC = 1,    /* handle: cudaIpcMemHandle_t */
    DKV_DEVICE_VMM_FD = 2, /* fd */
    DKV_DEVICE_POOL = 3    /* fd: the pool's; handle: cudaMemPoolPtrExportData */
} dkv_device_source_kind;

/* How another process finds a range of device memory. */
typedef struct dkv_device_source {
    dkv_device_source_kind kind;
    unsigned char handle[DKV_DEVICE_HANDLE_BYTES];
    uint64_t allocation_bytes;
    uint64_t offset;
    int fd; /* the receiver's; -1: none */
} dkv_device_source;

typedef struct dkv_device_memory {
    void* self;
    void* base;
    uint64_t bytes;
    char const* device;  /* UUID */
    uint64_t held_bytes; /* what free gives back: 0 for memory of another owner */
    dkv_status (*describe)(void* self, dkv_device_source* source, char* error);
    /* To host memory; waits for the copy, not for the host's streams. */
    dkv_status (*read)(void* self, uint64_t offset, void* target, uint64_t bytes, char* error);
    /* Once, on any thread, when no other process has it mapped. */
    void (*free)(void* self);
} dkv_device_memory;

/* One engine's device. Used by any thread. */
typedef struct dkv_device {
    void* self;
    char const* uuid;
    dkv_status (*allocate)(void* self, uint64_t bytes, dkv_device_memory* memory, char* error);
    /* [count * DKV_DEVICE_HANDLE_BYTES], living as long as the device. Made at the first call.
     * DKV_UNSUPPORTED, DKV_DEVICE: events cannot be shared here, and timelines are used. */
    dkv_status (*events)(void* self, unsigned char const** handles, uint32_t* count, char* error);
    /* One to record next: events go round, and one that is still to happen is passed over.
     * DKV_DEADLINE_EXCEEDED: all of them are, for so long. After events(). One thread at a time. */
    dkv_status (*next_event)(void* self, uint32_t timeout_ms, uint32_t* event, char* error);
    /* DKV_BAD_STATE: the stream is being captured into a graph. */
    dkv_status (*record)(void* self, uint32_t event, void* stream, char* error);
    /* The same for a timeline's words, of which there are at most DKV_DEVICE_WORDS. */
    dkv_status (*next_word)(void* self, uint32_t timeout_ms, uint32_t* word, char* error);
    dkv_status (*write_word)(
        void* self, uint32_t word, void* address, uint64_t value, void* stream, char* error);
    void (*free)(void* self);
} dkv_device;

/* Takes the memory over, whatever comes of it. */
dkv_status dkv_device_arena_create(dkv_device_memory const* memory, dkv_arena** arena);
/* Takes the device over, whatever comes of it. options->device is not read: uuid is. */
dkv_status dkv_device_engine_open(dkv_engine_options const* options,
                                  dkv_device const* device,
                                  dkv_engine** engine);
dkv_status dkv_device_layer_ready(dkv_session* session, dkv_layer_ready const* ready, void* stream);
/* What dkv_last_error() says next on this thread. */
void dkv_device_remember(char const* message);

#ifdef __cplusplus
}
#endif

#endif /* DKV_DEVICE_ABI_H */
