/* dkv_cuda.h: device memory for an inference engine that links against libdkv (libdkv_cuda).
 *
 * Beside dkv.h, whose arenas, engines and sessions these are: an engine on a GPU is opened here,
 * keeps its K and V in device arenas, and reports layers whose rows are still being written. The
 * rest is dkv.h's, and so are dkv_last_error() and the statuses.
 *
 *   dkv_cuda_device_count, dkv_cuda_get_device, dkv_cuda_get_device_of    which GPU
 *   dkv_cuda_engine_open                          once, with options->device = its UUID
 *   dkv_cuda_arena_create, dkv_cuda_arena_adopt   memory for K, V and queries
 *   dkv_cuda_layer_ready                          per layer, behind the work on a stream
 *
 * What is different on a device:
 *   - Every arena of a session is on its engine's device. The session's own (staging, destination)
 *     are made there; dkv_layer_view's keys and values are device pointers, its lengths, offsets
 *     and positions are in host memory.
 *   - An arena is one allocation. dkv_arena_release gives it back as a whole, or, for a part of it,
 *     nothing: an engine that drops layers one by one has an arena for each.
 *   - Memory is freed when the sidecar has said that it let go: dkv_arena_destroy,
 * dkv_arena_release of a whole arena and dkv_session_close wait for that, at most the engine's
 * timeout. When the word is late, dkv_arena_release returns DKV_DEADLINE_EXCEEDED and the memory is
 * freed once it comes; adopted memory must not be freed before.
 *
 * Needs no driver to be loaded: where there is no GPU its functions return DKV_UNAVAILABLE, and the
 * line says why. Every function leaves the calling thread's current device as it was. Streams are
 * cudaStream_t; NULL is the default stream. Threads, fork() and ownership: as in dkv.h.
 */
#ifndef DKV_CUDA_H
#define DKV_CUDA_H

#include "protocol/sdk/dkv.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "CUDA 13.0", or "CUDA 13.0, emulated on the CPU". */
char const* dkv_cuda_built_with(void);
/* 1: device memory is host memory here, and host code may follow pointers into it. */
int32_t dkv_cuda_is_emulated(void);

typedef struct dkv_cuda_device {
    uint32_t struct_bytes; /* sizeof(dkv_cuda_device) */
    int32_t ordinal;       /* in this process: CUDA_VISIBLE_DEVICES changes it */
    char uuid[48]; /* "GPU-01234567-89ab-cdef-0123-456789abcdef": the same in every process */
    char name[256];
    uint64_t bytes;
    int32_t major; /* compute capability */
    int32_t minor;
    uint32_t multiprocessors;
} dkv_cuda_device;

/* GPUs that this process can see, at least one.
 * DKV_UNAVAILABLE: no driver or no device; the line holds CUDA's code and words. */
dkv_status dkv_cuda_device_count(uint32_t* count);
/* DKV_INVALID_ARGUMENT: index. DKV_UNAVAILABLE. */
dkv_status dkv_cuda_get_device(uint32_t index, dkv_cuda_device* device);

/* The GPU whose memory that is. DKV_INVALID_ARGUMENT: no device memory. DKV_UNAVAILABLE. */
dkv_status dkv_cuda_get_device_of(void const* data, dkv_cuda_device* device);

typedef enum dkv_cuda_arena_kind {
    DKV_CUDA_ARENA_DEFAULT = 0, /* cudaMalloc; DKV_CUDA_ARENA=vmm in the environment changes it */
    DKV_CUDA_ARENA_MALLOC = 1,  /* cudaMalloc: shared by a CUDA IPC handle */
    DKV_CUDA_ARENA_VMM = 2      /* cuMemCreate: shared by a descriptor, over a Unix socket */
} dkv_cuda_arena_kind;

/* Device memory, zeroed, outside of any framework's caching allocator. To be given to dkv_rows, and
 * destroyed by dkv_arena_destroy; dkv_arena_base is a device pointer.
 *
 * DKV_NOT_FOUND: no device of that UUID; DKV_LIMIT_EXCEEDED: it has less left;
 * DKV_INVALID_ARGUMENT: bytes is 0, or the kind. */
dkv_status dkv_cuda_arena_create(char const* uuid,
                                 uint64_t bytes,
                                 dkv_cuda_arena_kind kind,
                                 dkv_arena** arena);

/* Device memory that the caller has already, from cudaMalloc, cuMemCreate with POSIX descriptors,
 * or an exportable pool: part of a larger allocation, too (a tensor of torch's, a block pool of
 * vLLM's). It stays the caller's: free it after dkv_arena_release(arena, 0, bytes) returned DKV_OK,
 * or after dkv_arena_destroy. dkv_arena_allocated_bytes is 0.
 *
 * DKV_UNSUPPORTED: memory that no other process can open, with the hint that helps.
 * DKV_INVALID_ARGUMENT: no device memory, or past its allocation. */
dkv_status dkv_cuda_arena_adopt(void* data, uint64_t bytes, dkv_arena** arena);

/* dkv_engine_open for an engine on the GPU whose UUID is options->device.
 *
 * DKV_NOT_FOUND: no device of that UUID, the known ones in the line. DKV_UNAVAILABLE: no GPU. */
dkv_status dkv_cuda_engine_open(dkv_engine_options const* options, dkv_engine** engine);

/* dkv_session_layer_ready for rows that are written by work already queued on `stream`: records an
 * event there and returns. Nothing waits on the device for the sidecar. The sidecar waits for the
 * event on the host, at most its deadline, and gives the session up after that. Where events cannot
 * be shared (containers without a common /dev/shm), or with DKV_CUDA_EVENTS=timeline in the
 * environment, a 64-bit word that the stream counts up stands in for them. dkv_session_layer_ready,
 * without a stream, says that the rows are written.
 *
 * DKV_BAD_STATE: the stream is being captured into a CUDA graph, where nothing happens;
 * DKV_DEADLINE_EXCEEDED: all events are of work in flight. Both abandon the session. */
dkv_status dkv_cuda_layer_ready(dkv_session* session, dkv_layer_ready const* ready, void* stream);

/* For hosts without a CUDA runtime of their own. Both wait for their copy: to the host on a stream
 * of its own, to the device behind what is queued on `stream`. DKV_INVALID_ARGUMENT: no device
 * memory; DKV_DEVICE. */
dkv_status dkv_cuda_copy_to_host(void* target, void const* source, uint64_t bytes);
dkv_status dkv_cuda_copy_to_device(void* target, void const* source, uint64_t bytes, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* DKV_CUDA_H */
