// LMCache's fs chunks: files "FORMAT@MODEL@WORLD@WORKER@HASH.data" of a header of seven i32 (bytes
// that follow, format, dtype, shape[4]) and a tensor [2, layers, tokens, heads · head_dim], which
// is format 1, the only one read. A prompt is a row of chunks; nothing in them says in which order.
#pragma once

#include <span>

#include "cli/saved/formats/saved_cache.h"

namespace dkv {

/// Whether a header stands there whose sizes are those of the file, or of a tensor.
bool is_lmcache_chunk(std::span<std::byte const> bytes) noexcept;

/// Whether a chunk is in it.
bool is_lmcache_folder(std::filesystem::path const& folder);

/// One prompt, whose chunks these are; `path` is for messages. Rows of several chunks are brought
/// together in memory, a layer at a time.
///
/// Errors: as open_cache() says; Unsupported, naming --kv-heads, without options.kv_heads.
Result<std::unique_ptr<SavedCache>> open_lmcache(std::vector<std::filesystem::path> const& chunks,
                                                 std::filesystem::path const& path,
                                                 OpenOptions const& options);

}  // namespace dkv
