// llama.cpp's saved sequences, written: what llama_state_seq_load_file and a llama-server slot
// take.
#pragma once

#include "cli/saved/formats/write_cache.h"

namespace dkv {

/// Errors: as write_cache() says.
Result<std::uint64_t> write_llama(Backend& backend, WriteRequest const& request);

/// The size of what write_llama() would write, exactly.
Result<std::uint64_t> llama_bytes(WriteRequest const& request);

/// Whether rows can be moved as llama.cpp stored them.
bool is_llama_cache(SavedCache const* cache) noexcept;

}  // namespace dkv
