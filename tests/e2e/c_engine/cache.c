#include "tests/e2e/c_engine/cache.h"

#include <stdlib.h>
#include <string.h>

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
    uint64_t const bytes = geometry.layers * result->layer_bytes;
    dkv_status const status = dkv_arena_create(bytes, options->arena, &result->arena);
    if (status != DKV_OK) return status;
    result->copy = malloc(bytes);
    return result->copy == NULL ? DKV_IO : DKV_OK;
}

void drop_cache(Cache* cache) {
    dkv_arena_destroy(cache->arena);
    free(cache->copy);
    memset(cache, 0, sizeof *cache);
}

void fill_layer(Cache* cache, uint32_t layer, uint64_t* random) {
    uint64_t const begin = layer * cache->layer_bytes;
    uint64_t const step = element_bytes(cache->geometry.dtype);
    unsigned char* const copy = cache->copy + begin;
    for (uint64_t at = 0; at < cache->layer_bytes; at += step)
        put_element(copy + at, cache->geometry.dtype, random);
    memcpy((unsigned char*)dkv_arena_base(cache->arena) + begin, copy, cache->layer_bytes);
}

static dkv_rows rows_at(Cache const* cache, uint64_t offset, uint32_t heads, uint32_t tokens) {
    uint32_t const dim = cache->geometry.head_dim;
    dkv_rows const rows = {
        cache->arena, offset, cache->geometry.dtype, heads, tokens, dim, (uint64_t)tokens * dim,
        dim,          1};
    return rows;
}

dkv_rows keys_of(Cache const* cache, uint32_t layer) {
    return rows_at(cache, layer * cache->layer_bytes, cache->geometry.kv_heads, cache->tokens);
}

dkv_rows values_of(Cache const* cache, uint32_t layer) {
    return rows_at(cache, layer * cache->layer_bytes + cache->part_bytes, cache->geometry.kv_heads,
                   cache->tokens);
}

dkv_rows queries_of(Cache const* cache, uint32_t layer) {
    return rows_at(cache, layer * cache->layer_bytes + 2 * cache->part_bytes,
                   cache->geometry.q_heads, cache->window);
}

uint64_t wrong_rows(Cache const* cache, uint32_t layer, dkv_layer_view const* view) {
    unsigned char const* const keys = cache->copy + layer * cache->layer_bytes;
    unsigned char const* const values = keys + cache->part_bytes;
    int32_t const* position = view->positions;
    uint64_t wrong = 0;
    for (uint32_t head = 0; head < cache->geometry.kv_heads; ++head) {
        for (uint32_t row = 0; row < view->lengths[head]; ++row, ++position) {
            uint64_t const mine =
                ((uint64_t)head * cache->tokens + (uint64_t)*position) * cache->row_bytes;
            uint64_t const theirs = view->head_offset[head] + row * cache->row_bytes;
            int const same = memcmp(keys + mine, (unsigned char const*)view->keys + theirs,
                                    cache->row_bytes) == 0 &&
                             memcmp(values + mine, (unsigned char const*)view->values + theirs,
                                    cache->row_bytes) == 0;
            wrong += same ? 0 : 1;
        }
    }
    return wrong;
}
