/* dkv_llama.h: compresses the KV cache of a llama.cpp context through llama.cpp's public functions
 * (libdkv_llama). llama.cpp is not patched and not linked: its functions are looked up in the
 * process, and none of its structs are read.
 *
 *   dkv_llama_open                    before the context is made
 *   params.cb_eval = dkv_llama_eval;  in llama_context_params; cb_eval_user_data = the dkv_llama
 *   llama_init_from_model
 *   dkv_llama_attach                  once
 *   dkv_llama_begin                   per prompt, before its first llama_decode
 *     llama_decode …                  the whole prompt, in any number of batches
 *   dkv_llama_compress                before the first new token is decoded
 *   dkv_llama_close                   after the context was freed
 *
 * llama.cpp has one table of cells for all layers: every layer keeps the same number of tokens,
 * each layer and KV head its own ones. Cells keep no true positions afterwards: only continue the
 * sequence. Shifting the context, cutting it, and reusing part of it as another prompt's prefix
 * give wrong text (llama-server: --no-context-shift --cache-reuse 0).
 *
 * Layers with a sliding window beside full ones (iSWA, Gemma 3) stay as they are: a window bounds
 * them already. What is said of layers below is said of the full ones.
 *
 * Fails open: unless DKV_OK comes back with `compressed`, the context is as it was; DKV_INTERNAL of
 * dkv_llama_compress alone says that the sequence is lost. Statuses, policies and the rules for
 * threads are dkv.h's; use one thread for a dkv_llama and its context.
 */
#ifndef DKV_LLAMA_H
#define DKV_LLAMA_H

#include <stdbool.h>

#include "protocol/sdk/dkv.h"

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;
struct ggml_tensor;
typedef struct dkv_llama dkv_llama;

/* ggml_backend_sched_eval_callback */
typedef bool (*dkv_llama_callback)(struct ggml_tensor* tensor, bool ask, void* data);

typedef struct dkv_llama_options {
    uint32_t struct_bytes;
    char const* library;     /* path of the libllama that the process has loaded; NULL: its symbols
                                are those of the whole process */
    char const* endpoint;    /* as in dkv_engine_options */
    char const* model;       /* for people */
    uint32_t window_max;     /* query rows that are remembered; 0: 64 */
    uint32_t timeout_ms;     /* of waiting for a plan; 0: 10000 */
    dkv_llama_callback eval; /* your own cb_eval, called first; NULL: none */
    void* eval_data;
} dkv_llama_options;

/* DKV_NOT_FOUND: a function of llama.cpp is not in the library. DKV_UNSUPPORTED: a version of
 * llama.cpp that was not tested, by name. */
dkv_status dkv_llama_open(dkv_llama_options const* options, dkv_llama** llama);

/* cb_eval of the context; `llama` is the dkv_llama. Between dkv_llama_begin and
 * dkv_llama_compress it asks for each layer's queries after RoPE, and of a model with sliding
 * windows for its keys. */
bool dkv_llama_eval(struct ggml_tensor* tensor, bool ask, void* llama);

/* Checks the context and its model.
 *
 * DKV_UNSUPPORTED, by name: recurrent, hybrid and diffusion models, an architecture that was not
 * tested. */
dkv_status dkv_llama_attach(dkv_llama* llama, struct llama_context* context);

/* The next token that is decoded is a prompt's, of this sequence (llama_seq_id): its first, or,
 * behind cells that the sequence has, one that goes on with them. Until dkv_llama_compress, decode
 * no other sequence in this context. Ends the session of the prompt before. DKV_BAD_STATE: not
 * attached. DKV_INVALID_ARGUMENT: the context has no such sequence. */
dkv_status dkv_llama_begin(dkv_llama* llama, int32_t sequence);

/* In place of dkv_llama_compress: the prompt since dkv_llama_begin stays as it is, and the report
 * says why. */
dkv_status dkv_llama_leave_whole(dkv_llama* llama, char const* reason);

typedef struct dkv_llama_report {
    uint32_t struct_bytes;
    int32_t compressed;         /* 0: the context is as it was */
    uint32_t tokens;            /* of the prompt */
    uint32_t cells;             /* cells now: the policy's capacity, the same in each layer */
    uint32_t layers;            /* that were compressed */
    uint32_t layers_left_alone; /* left as they are */
    uint64_t bytes_before;      /* of the sequence's state */
    uint64_t bytes_after;
    uint64_t prompts; /* since dkv_llama_attach: dkv_llama_compress was called */
    uint64_t prompts_compressed;
    char policy[64];
    char reason[256]; /* why the last prompt was not compressed, or "" */
    uint64_t session; /* the last prompt's, as `dkv sessions` and dkvd's log name it; 0: none was
                         opened */
    uint64_t bytes_returned; /* of resident pages of the same context, to the system */
} dkv_llama_report;

/* Compresses the sequence after its prompt's prefill. With `target`, a context of the same model
 * in which that sequence is empty, the kept cells go there and `context` stays as it is: free it,
 * and its memory is the system's again. With NULL they stay in the same context, whose other cells
 * are then free; their pages go back to the system, until llama.cpp stores tokens there, if no
 * other sequence has cells and the cache lies in this process's own memory (not a GPU's). A policy
 * that keeps more in one layer or KV head than in another keeps its capacity in each, and ranks as
 * it does. A prompt that the policy keeps whole is DKV_OK, and `compressed` 0.
 *
 * DKV_BAD_STATE: no dkv_llama_begin, queries were not seen for each token, or fewer tokens were
 * decoded since dkv_llama_begin than the policy's window has. DKV_UNSUPPORTED: quantised rows whose
 * rotation the state does not say, a window above window_max, a sequence that was compressed or cut
 * before.
 * DKV_INVALID_ARGUMENT: `target` is the attached context, of another model, or has no such
 * sequence. DKV_INTERNAL: llama.cpp took neither the kept cells nor the whole state back; decode
 * the prompt again. DKV_LIMIT_EXCEEDED: `target` has too few
 * cells. Else as dkv_session_open and dkv_session_finish say. */
dkv_status dkv_llama_compress(dkv_llama* llama,
                              dkv_policy const* policy,
                              struct llama_context* target,
                              dkv_llama_report* report);

/* Tells the sidecar what the system gave back, as the caller measured it, in bytes; before the next
 * dkv_llama_begin. */
dkv_status dkv_llama_adopted(dkv_llama* llama,
                             uint64_t bytes_returned,
                             uint64_t bytes_peak,
                             uint64_t bytes_final);

dkv_status dkv_llama_get_report(dkv_llama const* llama, dkv_llama_report* report);

/* Of the model's layer and KV head, where the last prompt's kept tokens were: `positions` has room
 * for report.cells, ascending. DKV_NOT_FOUND: no such layer or head, a sliding layer, or nothing
 * was compressed. */
dkv_status dkv_llama_positions(dkv_llama const* llama,
                               uint32_t layer,
                               uint32_t head,
                               int32_t* positions);

/* Why this thread's last call of a dkv_llama_ function failed; "" when it did not. */
char const* dkv_llama_last_error(void);

/* NULL is allowed. */
void dkv_llama_close(dkv_llama* llama);

#ifdef __cplusplus
}
#endif

#endif /* DKV_LLAMA_H */
