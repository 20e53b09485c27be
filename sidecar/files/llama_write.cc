#include "sidecar/files/llama_write.h"

namespace dkv {

Result<std::uint64_t> write_llama(Backend& /*backend*/, WriteRequest const& request) {
    return llama_bytes(request);
}

Result<std::uint64_t> llama_bytes(WriteRequest const& request) {
    return Error{ErrorCode::Unsupported,
                 request.path.string() + ": llama.cpp's files are not written yet"};
}

}  // namespace dkv
