// llama.cpp's saved sequences, read: a state file (llama_state_seq_save_file, a llama-server slot),
// the blob of llama_state_seq_get_data.
#pragma once

#include <cstddef>
#include <span>

#include "cli/saved/formats/saved_cache.h"
#include "protocol/container/mapped_file.h"

namespace dkv {

/// Whether the first bytes are a magic of llama.cpp's.
bool is_llama_file(std::span<std::byte const> bytes) noexcept;

/// `path` is for messages and provenance. The file does not say how many KV heads there are:
/// `options.kv_heads` does.
///
/// Errors: as open_cache() says.
Result<std::unique_ptr<SavedCache>> open_llama_file(MappedFile mapped,
                                                    std::filesystem::path const& path,
                                                    OpenOptions const& options);

}  // namespace dkv
