#include "sidecar/files/llama_file.h"

namespace dkv {

bool is_llama_file(std::span<std::byte const> /*bytes*/) noexcept {
    return false;
}

Result<std::unique_ptr<SavedCache>> open_llama_file(MappedFile /*mapped*/,
                                                    std::filesystem::path const& path,
                                                    OpenOptions const& /*options*/) {
    return Error{ErrorCode::Unsupported, path.string() + ": llama.cpp's files are not read yet"};
}

}  // namespace dkv
