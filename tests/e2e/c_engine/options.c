#include "tests/e2e/c_engine/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char const kUsage[] =
    "usage: dkv_c_engine [--endpoint E] [--layers N] [--q-heads N] [--kv-heads N] [--head-dim N]\n"
    "    [--dtype f32|f16|bf16] [--tokens N] [--sessions K] [--timeout-ms N] [--seed N]\n"
    "    [--arena memfd|posix_shm|malloc|vmm] [--device UUID|cuda] [--no-progressive]\n"
    "    [--policy NAME] [--capacity N] [--window N] [--kernel N] [--update-interval N]\n"
    "    [--kill-self-at-layer N] [--pause-at-layer N] [--stall-at-layer N]\n"
    "    [--wrong-dtype] [--offset-past-region]\n";

typedef struct NumberFlag {
    char const* name;
    uint32_t* target;
} NumberFlag;

static int wrong(char const* what, char const* word) {
    fprintf(stderr, "dkv_c_engine: %s '%s'\n%s", what, word, kUsage);
    return 2;
}

static int parse_number(char const* word, uint64_t most, uint64_t* number) {
    char* end = NULL;
    errno = 0;
    unsigned long long const read = strtoull(word, &end, 10);
    if (errno != 0 || end == word || *end != '\0' || *word == '-' || read > most) return 1;
    *number = read;
    return 0;
}

/* Flags without a value. 1: known. */
static int parse_switch(char const* name, Options* result) {
    if (strcmp(name, "--no-progressive") == 0)
        result->progressive = 0;
    else if (strcmp(name, "--pause-before-session") == 0)
        result->pause_before_session = 1;
    else if (strcmp(name, "--settle") == 0)
        result->settle = 1;
    else if (strcmp(name, "--wrong-dtype") == 0)
        result->wrong_dtype = 1;
    else if (strcmp(name, "--offset-past-region") == 0)
        result->offset_past_region = 1;
    else
        return 0;
    return 1;
}

/* Flags whose value is a word. 0: unknown flag; 1: taken; 2: unknown word. */
static int parse_word(char const* name, char const* value, Options* result) {
    if (strcmp(name, "--endpoint") == 0) {
        result->endpoint = value;
        return 1;
    }
    if (strcmp(name, "--policy") == 0) {
        result->policy.name = value;
        return 1;
    }
    if (strcmp(name, "--device") == 0) {
        result->device = value;
        return 1;
    }
    if (strcmp(name, "--arena") == 0) {
        if (strcmp(value, "memfd") == 0)
            result->arena = DKV_ARENA_MEMFD;
        else if (strcmp(value, "posix_shm") == 0)
            result->arena = DKV_ARENA_POSIX_SHM;
        else if (strcmp(value, "malloc") == 0)
            result->gpu_arena = 1;
        else if (strcmp(value, "vmm") == 0)
            result->gpu_arena = 2;
        else
            return 2;
        return 1;
    }
    if (strcmp(name, "--dtype") == 0) {
        if (strcmp(value, "f32") == 0)
            result->geometry.dtype = DKV_F32;
        else if (strcmp(value, "f16") == 0)
            result->geometry.dtype = DKV_F16;
        else if (strcmp(value, "bf16") == 0)
            result->geometry.dtype = DKV_BF16;
        else
            return 2;
        return 1;
    }
    return 0;
}

/* Flags whose value is a number. 0: unknown flag; 1: taken; 2: no such number. */
static int parse_count(char const* name, char const* value, Options* result) {
    NumberFlag const flags[] = {
        {"--layers", &result->geometry.layers},
        {"--q-heads", &result->geometry.q_heads},
        {"--kv-heads", &result->geometry.kv_heads},
        {"--head-dim", &result->geometry.head_dim},
        {"--tokens", &result->tokens},
        {"--sessions", &result->sessions},
        {"--at-once", &result->at_once},
        {"--timeout-ms", &result->timeout_ms},
        {"--capacity", &result->policy.capacity},
        {"--window", &result->policy.window},
        {"--kernel", &result->policy.kernel},
        {"--update-interval", &result->policy.update_interval},
    };
    uint64_t number = 0;
    for (size_t at = 0; at < sizeof flags / sizeof *flags; ++at) {
        if (strcmp(name, flags[at].name) != 0) continue;
        if (parse_number(value, UINT32_MAX, &number) != 0) return 2;
        *flags[at].target = (uint32_t)number;
        return 1;
    }
    if (strcmp(name, "--seed") == 0) return parse_number(value, UINT64_MAX, &result->seed) ? 2 : 1;
    long* const at_layer = strcmp(name, "--kill-self-at-layer") == 0 ? &result->kill_self_at_layer
                           : strcmp(name, "--pause-at-layer") == 0   ? &result->pause_at_layer
                           : strcmp(name, "--stall-at-layer") == 0   ? &result->stall_at_layer
                           : strcmp(name, "--unwritten-layer") == 0  ? &result->unwritten_layer
                                                                     : NULL;
    if (at_layer == NULL) return 0;
    if (parse_number(value, UINT32_MAX >> 1, &number) != 0) return 2;
    *at_layer = (long)number;
    return 1;
}

int parse_options(int count, char** words, Options* result) {
    memset(result, 0, sizeof *result);
    dkv_policy_init(&result->policy);
    result->geometry = (dkv_geometry){4, 6, 2, 64, DKV_F32};
    result->tokens = 1024;
    result->sessions = 1;
    result->at_once = 1;
    result->timeout_ms = 5000;
    result->arena = DKV_ARENA_DEFAULT;
    result->progressive = 1;
    result->seed = 1;
    result->kill_self_at_layer = result->pause_at_layer = result->stall_at_layer = -1;
    result->unwritten_layer = -1;
    for (int at = 1; at < count; ++at) {
        char const* const name = words[at];
        if (parse_switch(name, result)) continue;
        if (at + 1 == count) return wrong("no value, or no such flag:", name);
        char const* const value = words[++at];
        int taken = parse_word(name, value, result);
        if (taken == 0) taken = parse_count(name, value, result);
        if (taken == 0) return wrong("no such flag:", name);
        if (taken == 2) return wrong(name, value);
    }
    return 0;
}
