/* Where the engine's bytes are: host memory, or a GPU's by libdkv_cuda (device_cuda.c), which a
 * build without a toolkit does not have (device_none.c). */
#ifndef DKV_C_ENGINE_DEVICE_H
#define DKV_C_ENGINE_DEVICE_H

#include <stdint.h>

#include "tests/e2e/c_engine/options.h"

/* Only where options->device is not NULL: a UUID, or "cuda" for the first GPU. */
dkv_status open_gpu_engine(char const* device, dkv_engine_options* wish, dkv_engine** engine);
dkv_status make_gpu_arena(int kind, uint64_t bytes, dkv_arena** arena);
/* On the default stream. */
dkv_status to_gpu(void* target, void const* source, uint64_t bytes);
dkv_status from_gpu(void* target, void const* source, uint64_t bytes);
/* Behind the default stream, or, to misbehave, behind one whose work does not get done. */
dkv_status report_behind_stream(dkv_session* session, dkv_layer_ready const* ready, int stalled);
/* Memory cannot be freed while a stream is stalled. */
void let_streams_go_on(void);
/* Why the last of these failed. */
char const* gpu_error(void);

#endif
