/* One prompt's K, V and Q in an arena, and the engine's own copy to check the packed rows by. */
#ifndef DKV_C_ENGINE_CACHE_H
#define DKV_C_ENGINE_CACHE_H

#include <stdint.h>

#include "tests/e2e/c_engine/options.h"

/* Layer after layer: K [kv_heads, tokens, head_dim], V alike, Q [q_heads, window, head_dim]; each
 * part begins on a page. In host memory all layers share an arena, which gives pages back; a GPU's
 * gives itself back as a whole, so that each layer has its own. */
typedef struct Cache {
    dkv_arena** arenas; /* [arena_count] */
    uint32_t arena_count;
    int on_gpu;
    int gpu_arena;       /* dkv_cuda_arena_kind */
    unsigned char* copy; /* of all layers, as they were written */
    dkv_geometry geometry;
    uint32_t tokens;
    uint32_t window;
    uint64_t row_bytes;
    uint64_t part_bytes; /* of K, and of V */
    uint64_t layer_bytes;
} Cache;

dkv_status make_cache(Options const* options, uint32_t window, Cache* result);
void drop_cache(Cache* cache);
/* Writes random rows, as a prefill would. */
dkv_status fill_layer(Cache* cache, uint32_t layer, uint64_t* random);
/* Gives a layer's memory back. */
dkv_status release_layer(Cache* cache, uint32_t layer);
uint64_t allocated_bytes(Cache const* cache);
dkv_rows keys_of(Cache const* cache, uint32_t layer);
dkv_rows values_of(Cache const* cache, uint32_t layer);
dkv_rows queries_of(Cache const* cache, uint32_t layer);
/* Goes on from `hash` over the positions of a PACKED view. */
uint64_t positions_hash(dkv_layer_view const* view, uint32_t heads, uint64_t hash);
/* Rows to decode against that are not the copy's, or cannot be read. PACKED: at their positions;
 * FULL (view NULL, too): all of them, in the engine's own memory; STAGED: each is some row of its
 * head, and none is there twice. */
uint64_t wrong_rows(Cache const* cache, uint32_t layer, dkv_layer_view const* view);

#endif
