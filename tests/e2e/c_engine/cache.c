#include "tests/e2e/c_engine/cache.h"

#include <stdlib.h>
#include <string.h>

#include "tests/e2e/c_engine/device.h"

enum { kPageBytes = 4096 };

static uint64_t whole_pages(uint64_t bytes) {
    return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

static uint64_t element_bytes(dkv_dtype dtype) {
    return dtype == DKV_F32 ? 4 : 2;
}

/* xorshift64*: anything that looks random will do. */
static uint64_t next_random(uint64_t* state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717ULL;
}

/* Uniform in [-1, 1), in the dtype's own bits. */
static void put_element(unsigned char* at, dkv_dtype dtype, uint64_t* random) {
    float const value = (float)(next_random(random) >> 40) / (float)(1U << 23) - 1.0f;
    uint32_t bits = 0;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == DKV_F32) {
        memcpy(at, &bits, sizeof bits);
        return;
    }
    uint16_t half = (uint16_t)(bits >> 16); /* bf16 is the upper half of f32 */
    if (dtype == DKV_F16) {
        uint32_t const exponent = (bits >> 23) & 0xff;
        half = (uint16_t)((bits >> 16) & 0x8000U);
        if (exponent > 112)
            half = (uint16_t)(half | ((exponent - 112) << 10) | ((bits >> 13) & 0x3ffU));
    }
    memcpy(at, &half, sizeof half);
}

dkv_status make_cache(Options const* options, uint32_t window, Cache* result) {
    dkv_geometry const geometry = options->geometry;
    memset(result, 0, sizeof *result);
    result->geometry = geometry;
    result->tokens = options->tokens;
    result->window = window;
    result->row_bytes = geometry.head_dim * element_bytes(geometry.dtype);
    result->part_bytes = whole_pages(geometry.kv_heads * options->tokens * result->row_bytes);
    result->layer_bytes = 2 * result->part_bytes +
                          whole_pages((uint64_t)geometry.q_heads * window * result->row_bytes);
    result->on_gpu = options->device != NULL;
    result->arena_count = result->on_gpu ? geometry.layers : 1;
    uint64_t const bytes = geometry.layers * result->layer_bytes;
    result->copy = malloc(bytes);
    result->arenas = calloc(result->arena_count, sizeof *result->arenas);
    if (result->copy == NULL || result->arenas == NULL) return DKV_IO;
    result->gpu_arena = options->gpu_arena;
    if (!result->on_gpu) return dkv_arena_create(bytes, options->arena, &result->arenas[0]);
    return DKV_OK; /* A layer's memory is made when it is filled. */
}

void drop_cache(Cache* cache) {
    for (uint32_t at = 0; at < cache->arena_count; ++at)
        dkv_arena_destroy(cache->arenas[at]);
    free(cache->arenas);
    free(cache->copy);
    memset(cache, 0, sizeof *cache);
}

static dkv_arena* arena_of(Cache const* cache, uint32_t layer) {
    return cache->arenas[cache->on_gpu ? layer : 0];
}

/* Of the layer in its arena. */
static uint64_t offset_of(Cache const* cache, uint32_t layer) {
    return cache->on_gpu ? 0 : layer * cache->layer_bytes;
}

dkv_status fill_layer(Cache* cache, uint32_t layer, uint64_t* random) {
    uint64_t const step = element_bytes(cache->geometry.dtype);
    unsigned char* const copy = cache->copy + layer * cache->layer_bytes;
    for (uint64_t at = 0; at < cache->layer_bytes; at += step)
        put_element(copy + at, cache->geometry.dtype, random);
    if (cache->on_gpu) {
        dkv_status const status =
            make_gpu_arena(cache->gpu_arena, cache->layer_bytes, &cache->arenas[layer]);
        if (status != DKV_OK) return status;
        return to_gpu(dkv_arena_base(cache->arenas[layer]), copy, cache->layer_bytes);
    }
    memcpy((unsigned char*)dkv_arena_base(cache->arenas[0]) + offset_of(cache, layer), copy,
           cache->layer_bytes);
    return DKV_OK;
}

dkv_status release_layer(Cache* cache, uint32_t layer) {
    return dkv_arena_release(arena_of(cache, layer), offset_of(cache, layer), cache->layer_bytes);
}

uint64_t allocated_bytes(Cache const* cache) {
    uint64_t bytes = 0;
    for (uint32_t at = 0; at < cache->arena_count; ++at)
        bytes += dkv_arena_allocated_bytes(cache->arenas[at]);
    return bytes;
}

/* `part`: bytes behind the layer's begin. */
static dkv_rows rows_at(
    Cache const* cache, uint32_t layer, uint64_t part, uint32_t heads, uint32_t tokens) {
    uint32_t const dim = cache->geometry.head_dim;
    dkv_rows const rows = {arena_of(cache, layer),
                           offset_of(cache, layer) + part,
                           cache->geometry.dtype,
                           heads,
                           tokens,
                           dim,
                           (uint64_t)tokens * dim,
                           dim,
                           1};
    return rows;
}

dkv_rows keys_of(Cache const* cache, uint32_t layer) {
    return rows_at(cache, layer, 0, cache->geometry.kv_heads, cache->tokens);
}

dkv_rows values_of(Cache const* cache, uint32_t layer) {
    return rows_at(cache, layer, cache->part_bytes, cache->geometry.kv_heads, cache->tokens);
}

dkv_rows queries_of(Cache const* cache, uint32_t layer) {
    return rows_at(cache, layer, 2 * cache->part_bytes, cache->geometry.q_heads, cache->window);
}

/* Rows of one head of K or V that are not `mine`, the copy's, at their positions. 1 per row. */
static void compare_head(Cache const* cache,
                         unsigned char const* mine,
                         unsigned char const* theirs,
                         uint32_t rows,
                         int32_t const* positions,
                         unsigned char* differs) {
    uint64_t const bytes = rows * cache->row_bytes;
    unsigned char* const read = cache->on_gpu ? malloc(bytes == 0 ? 1 : bytes) : NULL;
    if (cache->on_gpu && (read == NULL || from_gpu(read, theirs, bytes) != DKV_OK)) {
        memset(differs, 1, rows);
        free(read);
        return;
    }
    unsigned char const* const found = read != NULL ? read : theirs;
    for (uint32_t row = 0; row < rows; ++row)
        if (memcmp(mine + (uint64_t)positions[row] * cache->row_bytes,
                   found + row * cache->row_bytes, cache->row_bytes) != 0)
            differs[row] = 1;
    free(read);
}

uint64_t positions_hash(dkv_layer_view const* view, uint32_t heads, uint64_t hash) {
    uint64_t rows = 0;
    for (uint32_t head = 0; head < heads; ++head)
        rows += view->lengths[head];
    for (uint64_t row = 0; row < rows; ++row) /* FNV-1a over whole positions */
        hash = (hash ^ (uint64_t)view->positions[row]) * 1099511628211ULL;
    return hash;
}

/* Positions of staged rows, which the sidecar does not tell: where the copy has the same key. -1:
 * nowhere. */
static void find_positions(Cache const* cache,
                           unsigned char const* mine,
                           unsigned char const* theirs,
                           uint32_t rows,
                           int32_t* positions) {
    uint64_t const bytes = cache->row_bytes;
    unsigned char* const taken = calloc(cache->tokens, 1);
    for (uint32_t row = 0; row < rows; ++row) {
        positions[row] = -1;
        for (uint32_t at = 0; taken != NULL && at < cache->tokens && positions[row] < 0; ++at)
            if (!taken[at] && memcmp(mine + at * bytes, theirs + row * bytes, bytes) == 0)
                positions[row] = (int32_t)at;
        if (positions[row] >= 0) taken[positions[row]] = 1;
    }
    free(taken);
}

/* Of one head: `rows` rows of K and of V. `told`: their positions; NULL: all of the prompt, or
 * staged ones. */
static uint64_t wrong_rows_of_head(Cache const* cache,
                                   unsigned char const* mine,
                                   unsigned char const* keys,
                                   unsigned char const* values,
                                   uint32_t rows,
                                   int32_t const* told,
                                   int staged) {
    unsigned char* const differs = calloc(rows + 1, 1);
    int32_t* const positions = calloc(rows + 1, sizeof *positions);
    uint64_t wrong = 0;
    if (differs == NULL || positions == NULL) {
        free(differs);
        free(positions);
        return UINT32_MAX;
    }
    for (uint32_t row = 0; row < rows; ++row)
        positions[row] = told != NULL ? told[row] : (int32_t)row;
    if (staged) find_positions(cache, mine, keys, rows, positions);
    for (uint32_t row = 0; row < rows; ++row)
        if (positions[row] < 0) ++wrong, positions[row] = 0;
    if (wrong == 0) {
        compare_head(cache, mine, keys, rows, positions, differs);
        compare_head(cache, mine + cache->part_bytes, values, rows, positions, differs);
    }
    for (uint32_t row = 0; row < rows; ++row)
        wrong += differs[row];
    free(differs);
    free(positions);
    return wrong;
}

uint64_t wrong_rows(Cache const* cache, uint32_t layer, dkv_layer_view const* view) {
    unsigned char const* const mine = cache->copy + layer * cache->layer_bytes;
    unsigned char const* const own =
        (unsigned char const*)dkv_arena_base(arena_of(cache, layer)) + offset_of(cache, layer);
    uint64_t const head_bytes = cache->tokens * cache->row_bytes;
    int const full = view == NULL || view->form == DKV_LAYER_FULL;
    int const staged = !full && view->form == DKV_LAYER_STAGED;
    if (staged && cache->on_gpu) return 0; /* Told apart by content, which is not on the host. */
    int32_t const* positions = full || staged ? NULL : view->positions;
    uint64_t wrong = 0;
    for (uint32_t head = 0; head < cache->geometry.kv_heads; ++head) {
        uint32_t const rows = full ? cache->tokens : view->lengths[head];
        uint64_t const offset = full ? head * head_bytes : view->head_offset[head];
        unsigned char const* const keys = full ? own : view->keys;
        unsigned char const* const values = full ? own + cache->part_bytes : view->values;
        wrong += wrong_rows_of_head(cache, mine + head * head_bytes, keys + offset, values + offset,
                                    rows, positions, staged);
        if (positions != NULL) positions += rows;
    }
    return wrong;
}
