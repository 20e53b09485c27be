#include "protocol/sdk/llama/library.h"

#include <array>
#include <charconv>
#include <dlfcn.h>
#include <string_view>

namespace dkv::llama {
namespace {

// Of llama_version(): MAJOR.MINOR. A state has no version of its own, so that of the library
// counts.
constexpr std::array<std::string_view, 3> kVersions{"0.4.", "0.5.", "0.6."};

class Symbols {
public:
    explicit Symbols(void* handle) : handle_(handle) {}

    template <class Function>
    void find(char const* name, Function& function) {
        void* const found = dlsym(handle_, name);
        if (found == nullptr && missing_ == nullptr) missing_ = name;
        function = reinterpret_cast<Function>(found);
    }

    char const* missing() const noexcept { return missing_; }

private:
    void* handle_;
    char const* missing_ = nullptr;
};

Result<void> check_version(char const* version) {
    std::string known;
    for (auto const prefix : kVersions) {
        if (std::string_view(version).starts_with(prefix)) return {};
        known += (known.empty() ? "" : ", ") + std::string(prefix) + "x";
    }
    return unsupported("llama.cpp is version " + std::string(version) + ": known are " + known +
                       "; its cache is left as it is");
}

}  // namespace

std::string Library::metadata(llama_model const* model, std::string const& key) const {
    std::array<char, 256> text{};
    auto const length = llama_model_meta_val_str(model, key.c_str(), text.data(), text.size());
    return length < 0 ? std::string() : std::string(text.data());
}

std::optional<std::uint32_t> layer_in(std::string_view name, std::string_view prefix) {
    if (!name.starts_with(prefix)) return std::nullopt;
    name.remove_prefix(prefix.size());
    std::uint32_t layer = 0;
    auto const* const end = name.data() + name.size();
    auto const [rest, error] = std::from_chars(name.data(), end, layer);
    if (error != std::errc() || (rest != end && *rest != ' ')) return std::nullopt;
    return layer;
}

Result<Library> find_library(char const* path) {
    void* handle = RTLD_DEFAULT;
    if (path != nullptr) {
        handle = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
        if (handle == nullptr)
            return Error{ErrorCode::NotFound,
                         std::string(path) + " is not a library that this process has loaded"};
    }
    Symbols symbols(handle);
    Library library{};
#define DKV_FIND(name) symbols.find(#name, library.name)
    DKV_FIND(llama_version);
    DKV_FIND(llama_get_model);
    if (library.llama_version == nullptr && library.llama_get_model != nullptr)
        return unsupported(
            "llama.cpp has no llama_version, so it is older than 0.4; its cache is "
            "left as it is");
    if (library.llama_version != nullptr) DKV_TRY(check_version(library.llama_version()));
    DKV_FIND(llama_n_seq_max);
    DKV_FIND(llama_model_n_layer);
    DKV_FIND(llama_model_n_head);
    DKV_FIND(llama_model_n_head_kv);
    DKV_FIND(llama_model_n_embd);
    DKV_FIND(llama_model_n_swa);
    DKV_FIND(llama_model_is_recurrent);
    DKV_FIND(llama_model_is_hybrid);
    DKV_FIND(llama_model_is_diffusion);
    DKV_FIND(llama_model_meta_val_str);
    DKV_FIND(llama_get_memory);
    DKV_FIND(llama_memory_seq_rm);
    DKV_FIND(llama_memory_seq_pos_max);
    DKV_FIND(llama_state_seq_get_size);
    DKV_FIND(llama_state_seq_get_data);
    DKV_FIND(llama_state_seq_set_data);
    DKV_FIND(ggml_get_name);
    DKV_FIND(ggml_op_desc);
    DKV_FIND(ggml_get_data);
    DKV_FIND(ggml_nbytes);
    DKV_FIND(ggml_nelements);
    DKV_FIND(ggml_is_contiguous);
    DKV_FIND(ggml_backend_tensor_get);
#undef DKV_FIND
    if (symbols.missing() != nullptr)
        return Error{ErrorCode::NotFound, std::string("llama.cpp's ") + symbols.missing() +
                                              " is not in " +
                                              (path != nullptr ? path : "this process") +
                                              ": give the path of the libllama that is loaded"};
    return library;
}

}  // namespace dkv::llama
