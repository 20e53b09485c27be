#include "protocol/sdk/llama/preload/real.h"

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>

namespace dkv::llama {
namespace {

/// The file in which an address lies; empty: unknown.
std::string file_of(void const* address) {
    Dl_info info{};
    return dladdr(address, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

template <class Function>
void find(void* handle, char const* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
}

std::unique_ptr<Real> real_in(std::string const& path) {
    auto found = std::make_unique<Real>();
    found->path = path;
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (handle == nullptr) return found;
#define DKV_FIND(name) find(handle, #name, found->name)
    DKV_FIND(llama_decode);
    DKV_FIND(llama_process);
    DKV_FIND(llama_free);
    DKV_FIND(llama_get_logits);
    DKV_FIND(llama_get_logits_ith);
    DKV_FIND(llama_get_sampled_token_ith);
    DKV_FIND(llama_get_memory);
    DKV_FIND(llama_get_model);
    DKV_FIND(llama_n_seq_max);
    DKV_FIND(llama_model_n_layer);
    DKV_FIND(llama_model_n_head_kv);
    DKV_FIND(llama_model_n_swa);
    DKV_FIND(llama_model_meta_val_str);
    DKV_FIND(llama_memory_seq_rm);
    DKV_FIND(llama_memory_seq_cp);
    DKV_FIND(llama_memory_seq_keep);
    DKV_FIND(llama_memory_seq_add);
    DKV_FIND(llama_memory_seq_div);
    DKV_FIND(llama_memory_seq_pos_min);
    DKV_FIND(llama_memory_seq_pos_max);
    DKV_FIND(llama_memory_clear);
    DKV_FIND(llama_state_seq_get_size);
    DKV_FIND(llama_state_seq_get_data);
    DKV_FIND(llama_state_seq_set_data);
    DKV_FIND(llama_state_seq_set_data_ext);
    DKV_FIND(llama_state_seq_load_file);
    DKV_FIND(llama_state_set_data);
    DKV_FIND(llama_state_load_file);
    DKV_FIND(ggml_backend_sched_set_eval_callback);
#undef DKV_FIND
    return found;
}

}  // namespace

bool is_complete(Real const& functions) noexcept {
    return functions.llama_get_memory != nullptr && functions.llama_get_model != nullptr &&
           functions.llama_n_seq_max != nullptr && functions.llama_model_n_layer != nullptr &&
           functions.llama_model_n_head_kv != nullptr && functions.llama_model_n_swa != nullptr &&
           functions.llama_model_meta_val_str != nullptr &&
           functions.llama_memory_seq_rm != nullptr &&
           functions.llama_memory_seq_pos_min != nullptr &&
           functions.llama_memory_seq_pos_max != nullptr &&
           functions.llama_state_seq_get_size != nullptr &&
           functions.llama_state_seq_get_data != nullptr;
}

Real const& real(void const* caller) {
    // Never destroyed: a program may free its contexts when it exits.
    static auto& mutex = *new std::mutex;
    static auto& known = *new std::map<std::string, std::unique_ptr<Real>>;
    static auto const& own = *new std::string(file_of(reinterpret_cast<void const*>(&real)));
    thread_local Real const* last = nullptr;
    static void* const next = dlsym(RTLD_NEXT, "llama_decode");  // Called for each token.
    auto const path = file_of(next != nullptr ? next : caller);
    // llama.cpp was called from here, and has jumped on to another of its functions.
    if (path == own && last != nullptr) return *last;
    std::lock_guard const lock(mutex);
    auto& found = known[path];
    if (found == nullptr) found = real_in(path);
    if (path == own || found->llama_decode == nullptr) {
        std::fprintf(stderr, "dkv: %s calls llama.cpp, which is not found there\n", path.c_str());
        std::abort();
    }
    last = found.get();
    return *found;
}

}  // namespace dkv::llama
