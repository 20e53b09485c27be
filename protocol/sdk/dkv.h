/* dkv.h: the C interface that an inference engine links against (libdkv). No CUDA, no kernels.
 *
 * An engine attaches once (dkv_engine), keeps its K and V in shared memory (dkv_arena), and opens a
 * session per prompt (dkv_session). It reports each layer as its prefill ends, waits at the end for
 * what the sidecar made of it, and from then on decodes against dkv_session_layer's rows.
 *
 *   dkv_engine_open                                        once
 *   dkv_session_open                                       per prompt, before prefill
 *     per layer: compute, then dkv_session_layer_ready     never waits
 *                dkv_session_poll until DKV_EVENT_NONE     never waits with timeout_ms 0
 *   dkv_session_finish                                     waits, at most its deadline
 *     per layer: dkv_session_layer                         the rows to decode against
 *   dkv_session_close
 *
 * Every function returns a dkv_status unless it says otherwise. On anything but DKV_OK,
 * dkv_last_error() holds one line of English that names the value at fault, valid until the next
 * call on the same thread. No function throws, exits, writes to stderr, or waits past its deadline.
 * Whatever fails, the engine goes on: a layer whose rows were not released is whole in the engine's
 * own memory, one that was released is staged or packed in memory that the engine owns.
 *
 * Threads: an engine may be shared; a session belongs to one thread at a time. Not usable in a
 * child after fork(): calls there return DKV_BAD_STATE, closing and destroying aside. An arena's
 * memory is shared with a child: what either writes, both see. Ownership: what X_open or X_create
 * made, X_close or X_destroy frees. Strings that are passed in are copied. Pointers that come out
 * live as long as the object they came from. Shapes are written outermost first; strides count
 * elements.
 */
#ifndef DKV_H
#define DKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DKV_API_VERSION 1
#define DKV_PROTOCOL_VERSION 1
#define DKV_DEFAULT UINT32_MAX /* in a count: the policy's own default */

/* Values are those of ErrorCode in protocol/base/error.h; they never change meaning. */
typedef enum dkv_status {
    DKV_OK = 0,
    DKV_INVALID_ARGUMENT = 1,
    DKV_NOT_FOUND = 2,
    DKV_ALREADY_EXISTS = 3,
    DKV_BAD_STATE = 4,
    DKV_LIMIT_EXCEEDED = 5,
    DKV_UNSUPPORTED = 6,
    DKV_CORRUPT_DATA = 7,
    DKV_IO = 8,
    DKV_DEVICE = 9,
    DKV_UNAVAILABLE = 10,       /* no sidecar answers, or it went away */
    DKV_DEADLINE_EXCEEDED = 11, /* no answer in time; the session is abandoned */
    DKV_VERSION_MISMATCH = 12,
    DKV_UNKNOWN_INSTANCE = 13,
    DKV_INTERNAL = 14,
    DKV_CANCELLED = 15,
    DKV_PERMISSION_DENIED = 16 /* not for this user or process */
} dkv_status;

typedef enum dkv_dtype { DKV_F32 = 1, DKV_F16 = 2, DKV_BF16 = 3 } dkv_dtype;

typedef struct dkv_engine dkv_engine;
typedef struct dkv_arena dkv_arena;
typedef struct dkv_session dkv_session;

/* "MAJOR.MINOR.PATCH" */
char const* dkv_version(void);
/* Why this thread's last call failed; "" when none has. */
char const* dkv_last_error(void);
/* "deadline_exceeded" and so on. */
char const* dkv_status_name(dkv_status status);

/* ------------------------------------------------------------------------------- memory to lend */

typedef enum dkv_arena_kind {
    DKV_ARENA_DEFAULT = 0,  /* memfd; DKV_ARENA=posix_shm in the environment changes it */
    DKV_ARENA_MEMFD = 1,    /* nameless, reached through /proc/PID/fd: no /dev/shm limit, no leak */
    DKV_ARENA_POSIX_SHM = 2 /* named, unlinked as soon as the sidecar has mapped it */
} dkv_arena_kind;

/* Shared memory that the engine owns: sparse, zeroed, page-aligned, mapped read-write here. Pages
 * exist once they are touched. The engine may write K and V into it with any stride.
 *
 * DKV_INVALID_ARGUMENT: bytes is 0. DKV_IO: the system refused; the message holds errno's text. */
dkv_status dkv_arena_create(uint64_t bytes, dkv_arena_kind kind, dkv_arena** arena);
void* dkv_arena_base(dkv_arena const* arena);
uint64_t dkv_arena_bytes(dkv_arena const* arena);
/* Gives whole pages inside [offset, offset + bytes) back to the system; they read as zero again, in
 * a forked child, too. DKV_BAD_STATE: in the child itself. */
dkv_status dkv_arena_release(dkv_arena* arena, uint64_t offset, uint64_t bytes);
/* Bytes that the system holds for this arena now (st_blocks), seen, not computed. */
uint64_t dkv_arena_allocated_bytes(dkv_arena const* arena);
/* Unmaps. The memory goes when the sidecar has dropped its mapping too. NULL is allowed. */
void dkv_arena_destroy(dkv_arena* arena);

/* -------------------------------------------------------------------------------------- the engine
 */

typedef struct dkv_geometry {
    uint32_t layers;  /* compressible layers only, numbered 0 … layers-1 */
    uint32_t q_heads; /* a multiple of kv_heads */
    uint32_t kv_heads;
    uint32_t head_dim;
    dkv_dtype dtype; /* of K, V and Q */
} dkv_geometry;

typedef struct dkv_engine_options {
    uint32_t struct_bytes; /* sizeof(dkv_engine_options): lets the struct grow */
    char const* endpoint;  /* NULL: DKV_ENDPOINT, else the default of this user */
    char const* engine;    /* for people: "transformers 5.23.0" */
    char const* model;     /* for people: "SmolLM2-135M-Instruct" */
    char const* device;    /* NULL or "cpu"; a GPU's engine is opened by dkv_cuda.h */
    uint64_t group;        /* ranks of one model share it; 0: alone */
    dkv_geometry geometry;
    uint32_t timeout_ms; /* deadline of one request; 0: 2000 */
} dkv_engine_options;

/* Makes an engine and starts its thread, which attaches to the sidecar, answers for its life and
 * attaches again when the sidecar was restarted. Needs no sidecar: without one, sessions fail with
 * DKV_UNAVAILABLE until there is one.
 *
 * DKV_INVALID_ARGUMENT: geometry or endpoint. */
dkv_status dkv_engine_open(dkv_engine_options const* options, dkv_engine** engine);

/* Waits until the engine is attached. DKV_UNAVAILABLE, DKV_DEADLINE_EXCEEDED, DKV_VERSION_MISMATCH.
 */
dkv_status dkv_engine_wait_attached(dkv_engine* engine, uint32_t timeout_ms);

typedef struct dkv_engine_state {
    uint32_t struct_bytes;
    int32_t attached;  /* 1: a sidecar answered the last hello, and answers still */
    uint64_t instance; /* what `dkv instances` shows, there in hexadecimal */
    uint64_t boot_id;  /* of the sidecar; 0: never attached */
    uint64_t sessions_opened;
    uint64_t sessions_failed;
    char last_error[256]; /* why the last session was not compressed, or "" */
} dkv_engine_state;
dkv_status dkv_engine_get_state(dkv_engine* engine, dkv_engine_state* state);

/* Says goodbye and frees the engine; its sessions must be closed before. NULL is allowed. */
void dkv_engine_close(dkv_engine* engine);

/* -------------------------------------------------------------------------------------- a session
 */

/* What predicts from K and V alone how much later text attends to a token (`dkv calibrate
 * --surrogate`). A KV head's weights are for the keys of every KV head, rotated back to position 0,
 * the values of every head, the logarithms of their norms, and a constant. */
typedef struct dkv_surrogate {
    uint32_t struct_bytes;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint16_t const*
        weights; /* bf16, [layers, kv_heads, 2 * kv_heads * head_dim + 2 * kv_heads + 1] */
    float const* frequencies; /* [pairs] of the keys' rotation */
    uint32_t pairs;           /* at most head_dim / 2; 0: keys are not rotated */
    int32_t interleaved;      /* 1: dims (2i, 2i + 1) turn together; 0: (i, i + pairs) */
} dkv_surrogate;

/* How much each layer or KV head of the model matters (`dkv calibrate`): budgets go with
 * weight^alpha, and every head keeps at least floor of the mean. */
typedef struct dkv_profile {
    uint32_t struct_bytes;
    char const* name;               /* for people */
    uint32_t layers;                /* as in dkv_geometry */
    uint32_t heads;                 /* KV heads; 1: the heads of a layer alike */
    double const* weights;          /* [layers * heads], at least 0, one of them above */
    double alpha;                   /* 0 … 8 */
    double floor;                   /* 0 … 1 */
    uint32_t kernel;                /* of the pooling that it was measured with; 0: unknown */
    dkv_surrogate const* surrogate; /* NULL: none */
} dkv_profile;

/* A wish; what the operator set with `dkv policy set` goes before it. Fill with
 * dkv_policy_init(&policy), then change fields: DKV_DEFAULT in a count, a negative
 * number in a ratio mean "the default". Of capacity, ratio, bytes and keep_mass give one at most.
 * Pointers are read during the call only. */
typedef struct dkv_policy {
    uint32_t struct_bytes;
    char const* name;  /* "dynamickv", "snapkv", …; NULL: the sidecar's, with its parameters */
    uint32_t capacity; /* mean tokens per layer and KV head, window included */
    uint32_t window;
    uint32_t kernel;    /* odd */
    char const* pool;   /* "max", "avg"; NULL: default */
    char const* reduce; /* "mean", "max", "sum"; NULL: default */
    double r_max;
    double r_min;
    uint32_t update_interval;
    uint32_t sinks;
    double beta;
    char const* granularity; /* "layer", "head", "layer-head"; NULL: default */
    char const* score_norm;  /* "none", "layer", "layer-nosink"; NULL: default */
    int32_t query_norm; /* h2o: 1 divides by the queries that can see a token; negative: default */
    double ratio;       /* share of the prompt's tokens to keep, above 0, at most 1 */
    uint64_t bytes;     /* most bytes of K and V to keep; 0: not given */
    double keep_mass;   /* share of the window's attention to keep, above 0, at most 1 */
    char const* preset; /* "paper"; NULL: none */
    dkv_profile const* profile; /* dynamickv; NULL: none */
    double profile_alpha;       /* 0 … 8, in place of the profile's own */
    double profile_floor;       /* 0 … 1, in place of the profile's own */
    char const* purpose;        /* auto: "both", "reuse", "this-question"; NULL: default */
} dkv_policy;
/* Writes struct_bytes bytes, whatever size the struct has in this libdkv. */
void dkv_policy_defaults(dkv_policy* policy, uint32_t struct_bytes);
#define dkv_policy_init(policy) dkv_policy_defaults(policy, sizeof *(policy))

typedef struct dkv_session_options {
    uint32_t struct_bytes;
    uint32_t prompt_tokens;   /* of the whole prompt, all chunks */
    dkv_policy const* policy; /* NULL: the sidecar's choice */
    int32_t progressive;      /* 1: layers are released while prefill runs; 0: only at the end */
    uint32_t unused;          /* earlier versions had padding here */
    /* What an earlier dkv.h did not have; its struct_bytes is accepted, and these are left out. */
    uint32_t row_multiple; /* tokens in a block of the engine's cache: the rows that a KV head keeps
                              are rounded up with its next best ones to row_offset (mod
                              row_multiple), at most prompt_tokens. 0: not rounded */
    uint32_t row_offset;   /* below row_multiple */
    int32_t uniform; /* 1: each layer and KV head keeps the policy's capacity, its own best rows,
                        for an engine with one table of cells */
    int32_t rope_interleaved; /* 1: dims (2i, 2i + 1) of the keys turn together: the surrogate of a
                                 profile, also of an operator's, is put in that order. 0: it is in
                                 the order of the keys */
} dkv_session_options;

typedef struct dkv_session_plan {
    uint32_t struct_bytes;
    int32_t compress;  /* 0: this prompt is kept whole; nothing more is needed but close */
    uint32_t window;   /* rows of queries wanted with each layer */
    char policy[64];   /* the name of the policy that will be used */
    uint32_t capacity; /* 0: the policy keeps a share of the attention */
} dkv_session_plan;

/* Opens a session, gives it staging and destination memory, and tells what will be done.
 * On failure *session is NULL, and the engine goes on with its full cache.
 *
 * DKV_UNAVAILABLE; DKV_DEADLINE_EXCEEDED, without waiting while a sidecar that did not answer
 * before is being asked again in the background; DKV_VERSION_MISMATCH; DKV_INVALID_ARGUMENT with
 * the sidecar's words (capacity below the window, an even kernel, …); DKV_NOT_FOUND: unknown
 * policy; DKV_LIMIT_EXCEEDED. */
dkv_status dkv_session_open(dkv_engine* engine,
                            dkv_session_options const* options,
                            dkv_session** session,
                            dkv_session_plan* plan);

/* What `dkv sessions` and the sidecar's log call this session, in hexadecimal there; 0: session is
 * NULL. */
uint64_t dkv_session_id(dkv_session const* session);

/* Rows inside an arena. Nothing of it is read after the layer was staged (event below). */
typedef struct dkv_rows {
    dkv_arena* arena; /* registered with the sidecar at its first use */
    uint64_t offset;  /* bytes from the arena's base */
    dkv_dtype dtype;
    uint32_t heads;
    uint32_t tokens;
    uint32_t head_dim;
    uint64_t head_stride;  /* elements */
    uint64_t token_stride; /* elements */
    uint64_t dim_stride;   /* elements, nearly always 1 */
} dkv_rows;

/* Where the tokens are of a prompt whose K and V lie in blocks of the engine's cache (vLLM's):
 * token t is row t % n of block ids[t / n], n being the tokens of a block. The blocks may be
 * written again only when the layer was staged or the session has ended. */
typedef struct dkv_blocks {
    uint32_t const* ids; /* [count], each block once; read during the call */
    uint32_t count;      /* ceil(prompt_tokens / n) */
    uint64_t stride;     /* elements from a block to the next one in memory */
} dkv_blocks;

typedef struct dkv_layer_ready {
    uint32_t struct_bytes;
    uint32_t layer;          /* in order, from 0 */
    dkv_rows keys;           /* [kv_heads, prompt_tokens, head_dim] */
    dkv_rows values;         /* [kv_heads, prompt_tokens, head_dim] */
    dkv_rows const* queries; /* [q_heads, window, head_dim] after RoPE, or NULL with scores */
    dkv_rows const* scores;  /* [q_heads or kv_heads, prompt_tokens, 1] f32, or NULL */
    float scale;             /* of the logits; 0: 1/sqrt(head_dim) */
    float softcap;           /* 0: none */
    /* What an earlier dkv.h did not have; its struct_bytes is accepted, and these are left out. */
    float const* sink_logits; /* [q_heads] learned attention sinks, finite: each head's softmax has
                                 this logit beside its tokens', after scale and softcap; it has no
                                 value row. NULL: none. Read during the call */
    dkv_blocks const* blocks; /* of keys and values, which then are block 0's, [kv_heads, n,
                                 head_dim]. NULL: they are the prompt's */
} dkv_layer_ready;

/* Reports a layer. Sends and returns; what comes of it is an event. After a failure the session is
 * abandoned: finish and layer still work and give the best rows there are.
 *
 * DKV_BAD_STATE: out of order, or the session was abandoned. DKV_INVALID_ARGUMENT: shapes, rows or
 * blocks outside the arena, or a sink that is not a finite number. */
dkv_status dkv_session_layer_ready(dkv_session* session, dkv_layer_ready const* ready);

typedef enum dkv_event_kind {
    DKV_EVENT_NONE = 0,      /* nothing (yet) */
    DKV_EVENT_RELEASE = 1,   /* `layer`'s full-length rows are not needed any more: drop them */
    DKV_EVENT_TRIMMED = 2,   /* `layer`'s staged rows were cut; the SDK gave their pages back */
    DKV_EVENT_PACKED = 3,    /* `layer` is in the destination; its staged pages were given back */
    DKV_EVENT_COMMITTED = 4, /* every layer is in the destination */
    DKV_EVENT_FAILED = 5     /* the session was abandoned; dkv_last_error() says why */
} dkv_event_kind;

typedef struct dkv_event {
    uint32_t struct_bytes;
    dkv_event_kind kind;
    uint32_t layer;
} dkv_event;

/* The next thing that happened, waiting at most timeout_ms for it; DKV_EVENT_NONE when nothing did.
 * Returns DKV_OK for every event, DKV_EVENT_FAILED too. */
dkv_status dkv_session_poll(dkv_session* session, dkv_event* event, uint32_t timeout_ms);

typedef struct dkv_result {
    uint32_t struct_bytes;
    int32_t committed; /* 1: compressed; 0: abandoned or not to be compressed */
    uint64_t bytes_full;
    uint64_t bytes_kept;
    uint64_t bytes_block_table; /* what a host with one block table for all layers would get */
    uint64_t busy_ns;           /* the sidecar's time spent on this session */
} dkv_result;

/* Waits for the destination, at most timeout_ms (0: the engine's). Events that come meanwhile are
 * kept for dkv_session_poll; call it afterwards until DKV_EVENT_NONE. */
dkv_status dkv_session_finish(dkv_session* session, uint32_t timeout_ms, dkv_result* result);

typedef enum dkv_layer_form {
    DKV_LAYER_FULL = 0,   /* the engine's own rows, never released: use those */
    DKV_LAYER_STAGED = 1, /* staged rows: the fallback of a layer that was released */
    DKV_LAYER_PACKED = 2  /* the destination */
} dkv_layer_form;

/* Where a layer's rows are now. Row r of head h is at
 *   keys + head_offset[h] + r * row_bytes, r < lengths[h]. */
typedef struct dkv_layer_view {
    uint32_t struct_bytes;
    dkv_layer_form form;
    void const* keys; /* NULL when form is DKV_LAYER_FULL */
    void const* values;
    uint32_t const* lengths;     /* [kv_heads] rows; NULL when form is DKV_LAYER_FULL */
    uint64_t const* head_offset; /* [kv_heads] bytes, the same for keys and values */
    int32_t const* positions; /* DKV_LAYER_PACKED: positions of the rows, heads one after another */
    float mass_kept; /* share of the window's attention on kept tokens; negative: unknown */
} dkv_layer_view;
dkv_status dkv_session_layer(dkv_session* session, uint32_t layer, dkv_layer_view* view);

/* The arenas that hold the staged and the packed rows, owned by the session until they are taken:
 * after dkv_session_take_arena the caller destroys it, and may close the session before.
 * DKV_BAD_STATE: there is none, or it was taken. */
dkv_status dkv_session_take_arena(dkv_session* session, dkv_layer_form form, dkv_arena** arena);

/* Bytes of blocks that went back to the engine's own pool, where its other requests use them: the
 * system got nothing of them. Kept for dkv_session_adopted, which tells the sidecar. */
dkv_status dkv_session_returned_to_pool(dkv_session* session, uint64_t bytes);

/* Tells the sidecar what the system gave back, as the engine measured it. Bytes. */
dkv_status dkv_session_adopted(dkv_session* session,
                               uint64_t bytes_returned,
                               uint64_t bytes_peak,
                               uint64_t bytes_final);

/* Why the session was abandoned: DKV_OK when it was not. */
dkv_status dkv_session_failure(dkv_session const* session);

/* Ends the session, with a reason when it was given up (NULL otherwise), and frees it and the
 * arenas that were not taken. Does not wait. NULL session is allowed. */
void dkv_session_close(dkv_session* session, char const* reason);

/* -------------------------------------------------------------------------------- saving a cache
 */

/* Rows of one tensor of a layer, in memory of the caller's, read during the call only. Row r of
 * head h begins head_offset[h] bytes, or without head_offset h * head_stride elements, plus
 * r * token_stride elements after `data`. */
typedef struct dkv_save_rows {
    void const* data;
    uint64_t head_stride;        /* elements; not read where there is a head_offset */
    uint64_t token_stride;       /* elements */
    uint64_t dim_stride;         /* elements, nearly always 1 */
    uint64_t const* head_offset; /* [heads] bytes; NULL: head_stride */
} dkv_save_rows;

typedef struct dkv_save_layer {
    uint32_t struct_bytes;    /* sizeof(dkv_save_layer), in every layer: the step of the array */
    dkv_save_rows keys;       /* [kv_heads, lengths, head_dim] after RoPE */
    dkv_save_rows values;     /* the same */
    dkv_save_rows queries;    /* [q_heads, query_rows, head_dim] after RoPE: of the last tokens */
    uint32_t const* lengths;  /* [kv_heads] rows; NULL: prompt_tokens in each head */
    int32_t const* positions; /* of the rows, heads one after another, ascending in each;
                                 NULL where every head has prompt_tokens rows */
    /* What an earlier dkv.h did not have; its struct_bytes is accepted, and these are left out. */
    float const* sink_logits; /* [q_heads] as in dkv_layer_ready; NULL: none */
    float const* scores; /* [kv_heads, prompt_tokens] what the policy `scores` ranks by, finite;
                            in every layer, all of them whole, or NULL in every one */
} dkv_save_layer;

typedef struct dkv_save_options {
    uint32_t struct_bytes;
    dkv_geometry geometry;
    char const* model;             /* for people, and for its profile */
    uint32_t prompt_tokens;        /* kept or not: the position of the next token */
    int32_t const* tokens;         /* [prompt_tokens] ids; NULL: not saved */
    uint32_t query_rows;           /* queries saved with each layer; 0: none */
    float scale;                   /* of the logits; 0: 1/sqrt(head_dim) */
    float softcap;                 /* 0: none */
    double rope_theta;             /* 0: not known */
    int32_t rope_interleaved;      /* adjacent pairs of dims turn together: 1: in these rows (as
                                      llama.cpp has Llama's); 2: in the model's own code, too (Cohere,
                                      GLM, GPT-J); 0: the two halves */
    uint32_t rope_dims;            /* 0: all of them */
    char const* rope_scaling;      /* JSON; NULL: plain rope */
    char const* const* provenance; /* key, value, key, value, …, NULL: what the cache went through
                                      ("policy", "snapkv"); NULL: nothing */
} dkv_save_options;

/* Writes a cache as dkv's own file (docs/FORMATS.md), which `dkv inspect`, `compact` and `sweep`
 * read; `layers` has geometry.layers entries. The file appears under `path` when it is whole and on
 * the disk, over what was there; else `path` is left as it was. *file_bytes is its size; NULL is
 * allowed. Needs no engine and no sidecar. Takes as long as the disk does.
 *
 * DKV_INVALID_ARGUMENT: a NULL, a geometry or lengths that cannot be, positions that do not ascend
 * or lie outside of the prompt, a sink or score that is not a finite number. DKV_IO: the system
 * refused (a full disk, no permission; where file sizes are limited, ignore SIGXFSZ).
 * DKV_ALREADY_EXISTS: `path` is a folder, FIFO or device. */
dkv_status dkv_save(char const* path,
                    dkv_save_options const* options,
                    dkv_save_layer const* layers,
                    uint64_t* file_bytes);

#ifdef __cplusplus
}
#endif

#endif /* DKV_H */
