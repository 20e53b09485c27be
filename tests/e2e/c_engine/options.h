/* What the command line of the C example engine says. */
#ifndef DKV_C_ENGINE_OPTIONS_H
#define DKV_C_ENGINE_OPTIONS_H

#include <stdint.h>

#include "protocol/sdk/dkv.h"

typedef struct Options {
    char const* endpoint; /* NULL: dkv's default */
    dkv_geometry geometry;
    uint32_t tokens;
    uint32_t sessions; /* one after another, in each thread */
    uint32_t at_once;  /* threads, each with sessions of its own */
    uint32_t timeout_ms;
    char const* device; /* NULL: the CPU; a GPU's UUID; "cuda": the first */
    dkv_arena_kind arena;
    int gpu_arena; /* dkv_cuda_arena_kind */
    dkv_policy policy;
    int progressive;
    uint64_t seed;
    /* Ways to misbehave; -1: not at all. */
    long kill_self_at_layer;
    long pause_at_layer;
    long stall_at_layer;
    long unwritten_layer; /* its pages go back before it is reported */
    int pause_before_session;
    int settle; /* waits for each layer's release before the next one */
    int wrong_dtype;
    int offset_past_region;
} Options;

/* 0, or 2 after saying on stderr what was wrong. */
int parse_options(int count, char** words, Options* result);

#endif
