/* An engine in plain C: random K, V and Q instead of a model, everything else as a real one does
 * it. Prints one line of JSON per run: what was kept, what memory came back, and whether every
 * packed row is the row that was there before. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "protocol/sdk/dkv.h"
#include "tests/e2e/c_engine/cache.h"
#include "tests/e2e/c_engine/device.h"
#include "tests/e2e/c_engine/options.h"

typedef struct Outcome {
    dkv_status status; /* of the first call that failed */
    char error[512];
    int committed;
    int compress;
    char policy[64];
    uint32_t capacity;
    uint64_t bytes_before; /* allocated, after the last layer that was written whole */
    uint64_t bytes_peak;
    uint64_t bytes_after;
    uint64_t rows_wrong;
    uint64_t session;
    uint64_t positions; /* a hash over all layers' */
    uint32_t* lengths;  /* [layers, kv_heads] */
    dkv_layer_form* forms;
    float* mass;
    uint64_t* report_ns; /* [layers] of the call that reports a layer */
    uint64_t* settle_ns; /* [layers] from that call to the layer's release; 0: not waited for */
    uint64_t open_ns;
    uint64_t finish_ns;
    dkv_result result;
} Outcome;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

static void note(Outcome* outcome, dkv_status status) {
    if (status == DKV_OK || outcome->status != DKV_OK) return;
    outcome->status = status;
    snprintf(outcome->error, sizeof outcome->error, "%s", dkv_last_error());
}

/* Takes every event that has come: a released layer's pages go back to the system. With a layer to
 * settle, waits until that one is released, or the session failed. */
static void take_events(
    dkv_session* session, Cache* cache, Outcome* outcome, long settle, uint32_t timeout_ms) {
    dkv_event event = {.struct_bytes = sizeof event};
    while (dkv_session_poll(session, &event, settle < 0 ? 0 : timeout_ms) == DKV_OK &&
           event.kind != DKV_EVENT_NONE) {
        if (event.kind == DKV_EVENT_FAILED) note(outcome, dkv_session_failure(session));
        if (event.kind == DKV_EVENT_RELEASE) note(outcome, release_layer(cache, event.layer));
        if (event.kind == DKV_EVENT_FAILED || (long)event.layer == settle) settle = -1;
    }
    uint64_t const bytes = allocated_bytes(cache);
    if (bytes > outcome->bytes_peak) outcome->bytes_peak = bytes;
}

/* 0: nothing more comes. */
static int wait_for_a_line(char const* where, uint64_t number) {
    char line[64];
    printf("{\"paused_at_%s\": %llu, \"pid\": %ld}\n", where, (unsigned long long)number,
           (long)getpid());
    fflush(stdout);
    return fgets(line, sizeof line, stdin) != NULL;
}

/* Prefill: layer by layer, never waiting. Without a session the cache just grows. */
static void prefill(Options const* options, dkv_session* session, Cache* cache, Outcome* outcome) {
    uint64_t random = options->seed * 0x9e3779b97f4a7c15ULL + 1;
    for (uint32_t layer = 0; layer < options->geometry.layers; ++layer) {
        note(outcome, fill_layer(cache, layer, &random));
        outcome->bytes_before += cache->layer_bytes;
        if (options->kill_self_at_layer == (long)layer) raise(SIGKILL);
        if (options->pause_at_layer == (long)layer) wait_for_a_line("layer", layer);
        if (session == NULL || !outcome->compress) continue;
        dkv_rows const queries = queries_of(cache, layer);
        dkv_layer_ready ready = {.struct_bytes = sizeof ready, .layer = layer};
        ready.keys = keys_of(cache, layer);
        ready.values = values_of(cache, layer);
        ready.queries = cache->window > 0 ? &queries : NULL;
        if (options->wrong_dtype)
            ready.keys.dtype = ready.keys.dtype == DKV_F32 ? DKV_F16 : DKV_F32;
        if (options->offset_past_region) ready.values.offset = dkv_arena_bytes(ready.values.arena);
        if (options->unwritten_layer == (long)layer) note(outcome, release_layer(cache, layer));
        uint64_t const begin = now_ns();
        dkv_status const status =
            options->device == NULL
                ? dkv_session_layer_ready(session, &ready)
                : report_behind_stream(session, &ready, options->stall_at_layer == (long)layer);
        outcome->report_ns[layer] = now_ns() - begin;
        /* An abandoned session refuses layers; why it was abandoned is what counts. */
        note(outcome, status == DKV_BAD_STATE ? dkv_session_failure(session) : status);
        take_events(session, cache, outcome, options->settle ? (long)layer : -1,
                    options->timeout_ms);
        if (options->settle) outcome->settle_ns[layer] = now_ns() - begin;
    }
}

/* After prefill: where is each layer, and is every row one that was there? */
static void verify(Options const* options, dkv_session* session, Cache* cache, Outcome* outcome) {
    uint32_t const heads = options->geometry.kv_heads;
    for (uint32_t layer = 0; layer < options->geometry.layers; ++layer) {
        dkv_layer_view view = {.struct_bytes = sizeof view};
        dkv_status const status =
            session == NULL ? DKV_UNAVAILABLE : dkv_session_layer(session, layer, &view);
        int const full = status != DKV_OK || view.form == DKV_LAYER_FULL;
        outcome->forms[layer] = full ? DKV_LAYER_FULL : view.form;
        outcome->mass[layer] = full ? -1 : view.mass_kept;
        for (uint32_t head = 0; head < heads; ++head)
            outcome->lengths[layer * heads + head] = full ? options->tokens : view.lengths[head];
        if (options->unwritten_layer != (long)layer)
            outcome->rows_wrong += wrong_rows(cache, layer, full ? NULL : &view);
        if (!full && view.form == DKV_LAYER_PACKED)
            outcome->positions = positions_hash(&view, heads, outcome->positions);
    }
}

static void run_session(Options const* options, dkv_engine* engine, Outcome* outcome) {
    dkv_session* session = NULL;
    dkv_session_plan plan = {.struct_bytes = sizeof plan};
    dkv_session_options const wish = {.struct_bytes = sizeof wish,
                                      .prompt_tokens = options->tokens,
                                      .policy = &options->policy,
                                      .progressive = options->progressive};
    int const asked = options->policy.name != NULL || options->policy.capacity != DKV_DEFAULT ||
                      options->policy.window != DKV_DEFAULT ||
                      options->policy.kernel != DKV_DEFAULT;
    dkv_session_options unasked = wish;
    unasked.policy = NULL;
    uint64_t const begin = now_ns();
    note(outcome, dkv_session_open(engine, asked ? &wish : &unasked, &session, &plan));
    outcome->open_ns = now_ns() - begin;
    outcome->session = session == NULL ? 0 : dkv_session_id(session);
    outcome->compress = plan.compress;
    outcome->capacity = plan.capacity;
    memcpy(outcome->policy, plan.policy, sizeof outcome->policy);

    Cache cache;
    if (make_cache(options, plan.window, &cache) != DKV_OK) {
        fprintf(stderr, "dkv_c_engine: no memory for the cache: %s\n", dkv_last_error());
        exit(1);
    }
    prefill(options, session, &cache, outcome);
    outcome->result.struct_bytes = sizeof outcome->result;
    dkv_arena* destination = NULL;
    if (session != NULL) {
        uint64_t const waited_from = now_ns();
        note(outcome, dkv_session_finish(session, options->timeout_ms, &outcome->result));
        outcome->finish_ns = now_ns() - waited_from;
        let_streams_go_on();
        take_events(session, &cache, outcome, -1, 0);
        outcome->committed = outcome->result.committed;
        if (outcome->committed)
            note(outcome, dkv_session_take_arena(session, DKV_LAYER_PACKED, &destination));
    }
    verify(options, session, &cache, outcome);
    outcome->bytes_after = allocated_bytes(&cache) + dkv_arena_allocated_bytes(destination);
    if (outcome->committed && outcome->bytes_after < outcome->bytes_before)
        note(outcome, dkv_session_adopted(session, outcome->bytes_before - outcome->bytes_after,
                                          outcome->bytes_peak, outcome->bytes_after));
    dkv_session_close(session, outcome->status == DKV_OK ? NULL : outcome->error);
    dkv_arena_destroy(destination);
    drop_cache(&cache);
}

static void print_text(char const* text) {
    putchar('"');
    for (; *text != '\0'; ++text) {
        if (*text == '"' || *text == '\\') putchar('\\');
        if ((unsigned char)*text >= ' ') putchar(*text);
    }
    putchar('"');
}

static void print_times(char const* name, uint64_t const* ns, uint32_t count) {
    printf("\"%s\": [", name);
    for (uint32_t at = 0; at < count; ++at)
        printf("%s%llu", at == 0 ? "" : ", ", (unsigned long long)ns[at]);
    printf("], ");
}

static void print_outcome(Options const* options, Outcome const* outcome) {
    static char const* const kForms[] = {"full", "staged", "packed"};
    uint32_t const heads = options->geometry.kv_heads;
    flockfile(stdout);
    printf("{\"libdkv\": \"%s\", \"session\": \"0x%016llx\", ", dkv_version(),
           (unsigned long long)outcome->session);
    printf("\"status\": \"%s\", \"error\": ", dkv_status_name(outcome->status));
    print_text(outcome->error);
    printf(", \"compress\": %s, \"committed\": %s, \"policy\": \"%s\", \"capacity\": %u, ",
           outcome->compress ? "true" : "false", outcome->committed ? "true" : "false",
           outcome->policy, outcome->capacity);
    printf(
        "\"positions\": \"%016llx\", \"rows_wrong\": %llu, \"bytes_before\": %llu, \"bytes_peak\": "
        "%llu, "
        "\"bytes_after\": %llu, \"bytes_full\": %llu, \"bytes_kept\": %llu, \"busy_ns\": %llu, ",
        (unsigned long long)outcome->positions, (unsigned long long)outcome->rows_wrong,
        (unsigned long long)outcome->bytes_before, (unsigned long long)outcome->bytes_peak,
        (unsigned long long)outcome->bytes_after, (unsigned long long)outcome->result.bytes_full,
        (unsigned long long)outcome->result.bytes_kept,
        (unsigned long long)outcome->result.busy_ns);
    print_times("open_ns", &outcome->open_ns, 1);
    print_times("report_ns", outcome->report_ns, options->geometry.layers);
    print_times("settle_ns", outcome->settle_ns, options->geometry.layers);
    print_times("finish_ns", &outcome->finish_ns, 1);
    printf("\"lengths\": [");
    for (uint32_t layer = 0; layer < options->geometry.layers; ++layer) {
        printf("%s[", layer == 0 ? "" : ", ");
        for (uint32_t head = 0; head < heads; ++head)
            printf("%s%u", head == 0 ? "" : ", ", outcome->lengths[layer * heads + head]);
        putchar(']');
    }
    printf("], \"forms\": [");
    for (uint32_t layer = 0; layer < options->geometry.layers; ++layer)
        printf("%s\"%s\"", layer == 0 ? "" : ", ", kForms[outcome->forms[layer]]);
    printf("], \"mass_kept\": [");
    for (uint32_t layer = 0; layer < options->geometry.layers; ++layer)
        printf("%s%.6g", layer == 0 ? "" : ", ", (double)outcome->mass[layer]);
    printf("]}\n");
    fflush(stdout);
    funlockfile(stdout);
}

typedef struct Thread {
    Options options;
    dkv_engine* engine;
    pthread_t id;
    int failed;
} Thread;

static void* run_sessions(void* given) {
    Thread* const thread = given;
    Options* const options = &thread->options;
    size_t const layers = options->geometry.layers;
    for (uint32_t at = 0; at < options->sessions; ++at, ++options->seed) {
        if (options->pause_before_session && !wait_for_a_line("session", at)) break;
        if (at > 0) options->unwritten_layer = -1;
        Outcome outcome = {.status = DKV_OK};
        outcome.lengths = calloc(layers * options->geometry.kv_heads, sizeof *outcome.lengths);
        outcome.forms = calloc(layers, sizeof *outcome.forms);
        outcome.mass = calloc(layers, sizeof *outcome.mass);
        outcome.report_ns = calloc(layers, sizeof *outcome.report_ns);
        outcome.settle_ns = calloc(layers, sizeof *outcome.settle_ns);
        if (outcome.lengths == NULL || outcome.forms == NULL || outcome.mass == NULL ||
            outcome.report_ns == NULL || outcome.settle_ns == NULL)
            exit(1);
        run_session(options, thread->engine, &outcome);
        print_outcome(options, &outcome);
        thread->failed |= outcome.status != DKV_OK || outcome.rows_wrong != 0;
        free(outcome.lengths);
        free(outcome.forms);
        free(outcome.mass);
        free(outcome.report_ns);
        free(outcome.settle_ns);
    }
    return NULL;
}

int main(int count, char** words) {
    Options options;
    if (parse_options(count, words, &options) != 0) return 2;
    dkv_engine_options wish = {.struct_bytes = sizeof wish,
                               .endpoint = options.endpoint,
                               .engine = "dkv_c_engine",
                               .model = "random rows",
                               .geometry = options.geometry,
                               .timeout_ms = options.timeout_ms};
    dkv_engine* engine = NULL;
    dkv_status const opened = options.device == NULL
                                  ? dkv_engine_open(&wish, &engine)
                                  : open_gpu_engine(options.device, &wish, &engine);
    if (opened != DKV_OK) {
        fprintf(stderr, "dkv_c_engine: %s\n",
                options.device == NULL ? dkv_last_error() : gpu_error());
        return 1;
    }
    int failed = 0;
    Thread* const threads = calloc(options.at_once, sizeof *threads);
    if (threads == NULL) return 1;
    for (uint32_t at = 0; at < options.at_once; ++at) {
        threads[at].options = options;
        threads[at].options.seed += (uint64_t)at * options.sessions;
        threads[at].engine = engine;
        if (pthread_create(&threads[at].id, NULL, run_sessions, &threads[at]) != 0) return 1;
    }
    for (uint32_t at = 0; at < options.at_once; ++at) {
        pthread_join(threads[at].id, NULL);
        failed |= threads[at].failed;
    }
    free(threads);
    dkv_engine_close(engine);
    return failed ? 3 : 0;
}
