// llama.cpp's own functions behind those that a preloaded library puts in their place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct llama_context;
struct llama_model;
struct llama_memory_i;
struct ggml_tensor;
struct ggml_backend_sched;

namespace dkv::llama {

/// llama_batch, which is handed on as it is: 56 bytes, in old versions 72. What lies behind it in
/// the caller's frame does no harm.
struct Batch {
    std::uint64_t words[9];
};

using EvalCallback = bool (*)(ggml_tensor*, bool ask, void* data);

/// As llama.h and ggml-backend.h declare them. nullptr: this version has none.
struct Real {
    std::string path;  ///< Of the file that they are in.
    std::int32_t (*llama_decode)(llama_context*, Batch);
    std::int32_t (*llama_process)(llama_context*, int type, void* batch);
    void (*llama_free)(llama_context*);
    float* (*llama_get_logits)(llama_context*);
    float* (*llama_get_logits_ith)(llama_context*, std::int32_t);
    std::int32_t (*llama_get_sampled_token_ith)(llama_context*, std::int32_t);
    llama_memory_i* (*llama_get_memory)(llama_context const*);
    llama_model const* (*llama_get_model)(llama_context const*);
    std::uint32_t (*llama_n_seq_max)(llama_context const*);
    std::int32_t (*llama_model_n_layer)(llama_model const*);
    std::int32_t (*llama_model_n_head_kv)(llama_model const*);
    std::int32_t (*llama_model_n_swa)(llama_model const*);
    std::int32_t (*llama_model_meta_val_str)(llama_model const*,
                                             char const* key,
                                             char* text,
                                             std::size_t bytes);
    bool (*llama_memory_seq_rm)(llama_memory_i*, std::int32_t, std::int32_t, std::int32_t);
    void (*llama_memory_seq_cp)(
        llama_memory_i*, std::int32_t, std::int32_t, std::int32_t, std::int32_t);
    void (*llama_memory_seq_keep)(llama_memory_i*, std::int32_t);
    void (*llama_memory_seq_add)(
        llama_memory_i*, std::int32_t, std::int32_t, std::int32_t, std::int32_t);
    void (*llama_memory_seq_div)(llama_memory_i*, std::int32_t, std::int32_t, std::int32_t, int);
    std::int32_t (*llama_memory_seq_pos_min)(llama_memory_i*, std::int32_t);
    std::int32_t (*llama_memory_seq_pos_max)(llama_memory_i*, std::int32_t);
    void (*llama_memory_clear)(llama_memory_i*, bool);
    std::size_t (*llama_state_seq_get_size)(llama_context*, std::int32_t);
    std::size_t (*llama_state_seq_get_data)(llama_context*,
                                            std::uint8_t*,
                                            std::size_t,
                                            std::int32_t);
    std::size_t (*llama_state_seq_set_data)(llama_context*,
                                            std::uint8_t const*,
                                            std::size_t,
                                            std::int32_t);
    std::size_t (*llama_state_seq_set_data_ext)(
        llama_context*, std::uint8_t const*, std::size_t, std::int32_t, std::uint32_t flags);
    std::size_t (*llama_state_seq_load_file)(
        llama_context*, char const*, std::int32_t, std::int32_t*, std::size_t, std::size_t*);
    std::size_t (*llama_state_set_data)(llama_context*, std::uint8_t const*, std::size_t);
    bool (*llama_state_load_file)(
        llama_context*, char const*, std::int32_t*, std::size_t, std::size_t*);
    void (*ggml_backend_sched_set_eval_callback)(ggml_backend_sched*, EvalCallback, void*);
};

/// Whether every function is there that a Live calls.
bool is_complete(Real const& functions) noexcept;

/// caller: an address in the code that called. Of the library that the whole process sees, else of
/// the caller's own file (a Python module with llama.cpp in it). Ends the process where a function
/// that was called is not there.
Real const& real(void const* caller);

}  // namespace dkv::llama
