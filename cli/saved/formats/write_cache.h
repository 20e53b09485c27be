// Writing a cache in any writable format: sizes first, then rows, layer by layer; the file appears
// whole or not at all.
#pragma once

#include <functional>

#include "cli/saved/formats/key_order.h"
#include "cli/saved/formats/saved_cache.h"
#include "kernels/backend.h"
#include "protocol/container/links.h"
#include "protocol/container/quantised_rows.h"

namespace dkv {

/// A layer as its source has it, and which of its rows to write.
struct RowsToWrite {
    SavedLayer source;
    /// [Σ lengths] rows of `source` in each head, head after head; empty: every row. Also the
    /// positions, where the source is whole.
    std::vector<std::int32_t> rows;
    /// The rows to refine, ascending, as the layer's rows will lie: head after head. Where
    /// WriteRequest::bits is Mixed.
    std::vector<std::int32_t> refined = {};
};

struct WriteRequest {
    std::filesystem::path path;
    std::filesystem::path like = {};  ///< A file or folder whose mode it gets; empty: umask's.
    Links links = Links::Follow;
    FileFormat format = FileFormat::Dkv;
    /// What the file will say: geometry, lengths (final), model, tokens, rope, provenance …;
    /// query_rows 0 leaves the queries out. format, format_words, file_bytes are not read.
    CacheFacts facts;
    /// Of the keys' dims in the output. Nothing: dkv keeps the source's, hf and mlx-lm have the
    /// model's own (halves, unless facts.rope says otherwise), llama.cpp what it saved.
    std::optional<KeyOrder> key_order = {};
    RowBits bits = RowBits::Own;              ///< dkv: of an element of K and V.
    std::vector<std::uint32_t> refined = {};  ///< Mixed: [layers] how many rows.
    /// Called once per layer, 0 … layers-1, in order.
    std::function<Result<RowsToWrite>(std::uint32_t layer)> layer;
    /// Called once all is written; what it refuses does not appear under its name. May be empty.
    std::function<Result<void>()> before_commit = {};
    /// llama.cpp: the file that cells, tokens and types are taken from, where it was one.
    SavedCache const* source = nullptr;
};

/// Memory: one head's rows at a time.
///
/// Errors: those of `layer`, `before_commit` and of NewFile; Unsupported, naming the reason, when
/// the format cannot hold this cache: mlx-lm and hf heads of unequal length, llama.cpp layers or
/// heads of unequal length, any but dkv rows of fewer bits, mlx-lm without a rope theta, or with a
/// scaling, that keys could be turned back by; keys whose order of dims is not known, or not
/// llama.cpp's; rows that may be rotated. Returns the file's size.
Result<std::uint64_t> write_cache(Backend& backend, WriteRequest const& asked);

/// Errors: Unsupported where a file of this format cannot have rows of so many bits.
Result<void> check_bits(RowBits bits, FileFormat format, std::uint32_t head_dim);

/// The order of the keys' dims that write_cache() would write.
///
/// Errors: Unsupported, where it would refuse.
Result<KeyOrder> written_key_order(WriteRequest const& request);

/// The size of the file that write_cache() would write, exactly; `asked.layer` is not called.
Result<std::uint64_t> written_bytes(WriteRequest const& asked);

}  // namespace dkv
