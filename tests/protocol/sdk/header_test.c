/* Compiled as C11: what a C engine sees of dkv.h. */
#include <string.h>

#include "protocol/sdk/dkv.h"

int dkv_header_test(void);

/* 0 when the header means in C what it means in C++. */
int dkv_header_test(void) {
    dkv_policy policy;
    dkv_policy_init(&policy);
    if (policy.struct_bytes != sizeof(dkv_policy)) return 1;
    if (policy.capacity != DKV_DEFAULT || policy.name != NULL || !(policy.r_max < 0)) return 2;
    if (strcmp(dkv_status_name(DKV_OK), "ok") != 0) return 3;
    if (strcmp(dkv_status_name(DKV_DEADLINE_EXCEEDED), "deadline_exceeded") != 0) return 4;
    dkv_arena* arena = NULL;
    if (dkv_arena_create(0, DKV_ARENA_DEFAULT, &arena) != DKV_INVALID_ARGUMENT) return 5;
    return arena == NULL ? 0 : 6;
}
