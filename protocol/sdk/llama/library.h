// llama.cpp's own functions, looked up in the library that the process has loaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "protocol/base/result.h"

struct llama_context;
struct llama_model;
struct llama_memory_i;
struct ggml_tensor;

namespace dkv::llama {

/// As llama.h and ggml.h declare them. Structs are never read: their layout changes between builds.
struct Library {
    char const* (*llama_version)();
    std::uint32_t (*llama_n_seq_max)(llama_context const*);
    llama_model const* (*llama_get_model)(llama_context const*);
    std::int32_t (*llama_model_n_layer)(llama_model const*);
    std::int32_t (*llama_model_n_head)(llama_model const*);
    std::int32_t (*llama_model_n_head_kv)(llama_model const*);
    std::int32_t (*llama_model_n_embd)(llama_model const*);
    std::int32_t (*llama_model_n_swa)(llama_model const*);
    bool (*llama_model_is_recurrent)(llama_model const*);
    bool (*llama_model_is_hybrid)(llama_model const*);
    bool (*llama_model_is_diffusion)(llama_model const*);
    std::int32_t (*llama_model_meta_val_str)(llama_model const*,
                                             char const* key,
                                             char* text,
                                             std::size_t bytes);
    llama_memory_i* (*llama_get_memory)(llama_context const*);
    bool (*llama_memory_seq_rm)(llama_memory_i*,
                                std::int32_t sequence,
                                std::int32_t begin,
                                std::int32_t end);
    std::int32_t (*llama_memory_seq_pos_max)(llama_memory_i*, std::int32_t sequence);
    std::size_t (*llama_state_seq_get_size)(llama_context*, std::int32_t sequence);
    std::size_t (*llama_state_seq_get_data)(llama_context*,
                                            std::uint8_t* state,
                                            std::size_t bytes,
                                            std::int32_t sequence);
    std::size_t (*llama_state_seq_set_data)(llama_context*,
                                            std::uint8_t const* state,
                                            std::size_t bytes,
                                            std::int32_t sequence);
    char const* (*ggml_get_name)(ggml_tensor const*);
    char const* (*ggml_op_desc)(ggml_tensor const*);
    void* (*ggml_get_data)(ggml_tensor const*);
    std::size_t (*ggml_nbytes)(ggml_tensor const*);
    std::int64_t (*ggml_nelements)(ggml_tensor const*);
    bool (*ggml_is_contiguous)(ggml_tensor const*);
    void (*ggml_backend_tensor_get)(ggml_tensor const*,
                                    void* data,
                                    std::size_t offset,
                                    std::size_t bytes);

    /// Empty without such a key.
    std::string metadata(llama_model const* model, std::string const& key) const;
};

/// The number behind `prefix`, up to the name's end or a blank: tensors are named for their layer.
std::optional<std::uint32_t> layer_in(std::string_view name, std::string_view prefix);

/// `path`: of a library that is loaded already; nullptr: the process's symbols.
///
/// Errors: NotFound, naming the library or the function; Unsupported: a version that was not
/// tested.
Result<Library> find_library(char const* path);

}  // namespace dkv::llama
