// A saved KV cache, whatever program wrote it: what it is, and where its rows lie.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/tensor_view.h"
#include "protocol/base/geometry.h"
#include "protocol/container/rope.h"

namespace dkv {

/// The formats that dkv knows.
enum class FileFormat : std::uint8_t {
    Dkv,         ///< Ours: safetensors.
    Hf,          ///< safetensors with k_{l} and v_{l}.
    LlamaState,  ///< llama.cpp: llama_state_seq_get_data, with or without its own magic (GGSQ).
    LlamaSlot,   ///< llama.cpp: a llama-server slot, or a session file.
    MlxLm,       ///< mlx-lm's prompt cache, as 0.32 and later write it.
    MlxLm031,    ///< The same before 0.32.
    Vllm,        ///< A folder of vLLM's ExampleConnector; read only.
    Lmcache      ///< A folder of LMCache's fs chunks; read only.
};

/// "dkv", "hf", "llama-state", "llama-slot", "mlx-lm", "mlx-lm@0.31", "vllm", "lmcache".
std::string_view name_of(FileFormat format) noexcept;
/// A name as name_of() has it; or mlx-lm of any version, "mlx-lm@0.29.1".
std::optional<FileFormat> file_format(std::string_view name) noexcept;
/// Of either generation.
constexpr bool is_mlx_lm(FileFormat format) noexcept {
    return format == FileFormat::MlxLm || format == FileFormat::MlxLm031;
}
bool is_writable(FileFormat format) noexcept;
/// Of llama.cpp's two.
bool is_llama(FileFormat format) noexcept;

/// In the provenance: the version of llama.cpp's files that rows came from, whose order of a key's
/// dims they have.
inline constexpr char const* kLlamaVersion = "llama_version";

/// How rows lie in a file that does not have them as geometry.dtype: quantised, or rotated.
/// layer() gives them as f32, not rotated.
struct StoredRows {
    std::string type;                   ///< For people: "K q8_0, V f16, K rotated by 64".
    std::uint64_t key_row_bytes = 0;    ///< Of one KV head.
    std::uint64_t value_row_bytes = 0;  ///< Likewise.
    /// [layers] of what refines some of a layer's rows; empty: none is refined.
    std::vector<std::uint64_t> rest_bytes = {};
    /// The file does not say whether they are rotated, and newer writers of it do rotate them:
    /// norms and angles among K are right, but no other program can use these rows.
    bool rotation_unknown = false;
};

/// Everything but the rows.
/// A server's newest checkpoint of sliding layers alone, which a cut of the full ones leaves true.
struct SlidingCheckpoint {
    std::int64_t tokens = 0;  ///< That it is a state after.
    std::uint64_t bytes = 0;
};

struct CacheFacts {
    FileFormat format = FileFormat::Dkv;
    std::string format_words;  ///< For people: "llama.cpp slot (GGSQ 3)".
    Geometry geometry;  ///< q_heads is kv_heads where the file has neither queries nor sinks.
    std::optional<StoredRows> stored = {};
    std::string model;  ///< Empty: the file does not say.
    /// Tokens of the prompt, kept or not: the next token's position.
    std::uint32_t prompt_tokens = 0;
    std::uint32_t query_rows = 0;  ///< How many of the last tokens' queries there are.
    float scale = 0;               ///< Of the logits; 0: 1/sqrt(head_dim).
    float softcap = 0;
    /// [layers] of [q_heads] learned attention sinks, or of none; empty: no layer has any.
    std::vector<std::vector<float>> sink_logits;
    RopeFacts rope;
    bool has_scores = false;  ///< SavedLayer::scores, in every layer.
    bool compacted = false;   ///< Tokens are missing somewhere.
    /// mlx-lm, which counts rows as positions 0, 1, 2 …: tokens of the longer prompt that the rows
    /// were kept of. 0: there is none.
    std::uint32_t kept_of = 0;
    std::vector<std::uint32_t> lengths;  ///< [layers, kv_heads] rows stored.
    std::vector<std::int32_t> tokens;    ///< [prompt_tokens] ids; empty: the file has none.
    /// "policy", "capacity", "window" …, "source_format", "source", "dkv": what the file went
    /// through.
    std::map<std::string, std::string> provenance;
    /// What the file has beside the cache, for people: "2 checkpoints, 1,234 bytes"; empty: none.
    std::string checkpoints = {};
    std::optional<SlidingCheckpoint> sliding_checkpoint = {};
    std::string media = {};
    /// llama.cpp: layers with a sliding window, which are in the file and not in the geometry.
    std::string sliding = {};
    std::uint64_t sliding_bytes = 0;  ///< Of the file.
    bool has_checksums = false;
    std::uint64_t file_bytes = 0;  ///< Of the file, or of the folder's files.

    std::span<float const> sinks(std::uint32_t layer) const {
        return sink_logits.empty() ? std::span<float const>() : std::span(sink_logits[layer]);
    }
    bool is_whole() const noexcept { return !compacted && kept_of == 0; }
    std::uint32_t length(std::uint32_t layer, std::uint32_t head) const {
        return lengths[std::size_t{layer} * geometry.kv_heads + head];
    }
    /// K and V of one token in one head, as they lie in the file, unless they are refined.
    std::uint64_t stored_bytes() const noexcept {
        return stored ? stored->key_row_bytes + stored->value_row_bytes : 2 * geometry.row_bytes();
    }
    /// K and V of a layer's rows, as they lie in the file.
    std::uint64_t layer_bytes(std::uint32_t layer) const;
    std::uint64_t rows_bytes() const;  ///< Of all layers.
};

/// One layer's rows. Views are never to be written through.
struct SavedLayer {
    /// Whole caches: [kv_heads, prompt_tokens, head_dim]. Compacted ones: head after head, as
    /// keys_of() cuts them.
    RowsView keys;
    RowsView values;
    /// Compacted: where each head's rows begin in the one "head" of keys and values, and their end.
    /// [kv_heads + 1]; empty: every head has keys.tokens rows.
    std::vector<std::uint32_t> head_rows;
    /// Of every row, head after head, ascending in each; empty: 0, 1, 2, … in every head.
    std::vector<std::int32_t> positions;
    RowsView queries;  ///< [q_heads, query_rows, head_dim] after RoPE; data nullptr: none.
    std::span<float const> sink_logits;  ///< [q_heads], the cache's; empty: none.
    RowsView
        scores;  ///< [kv_heads, prompt_tokens, 1] f32: the policy `scores` ranks by them; or none.
    /// Rows that had to be brought together from several places live here.
    std::shared_ptr<void const> hold;

    /// [1, rows of this head, head_dim]
    RowsView keys_of(std::uint32_t head) const;
    RowsView values_of(std::uint32_t head) const;
    std::span<std::int32_t const> positions_of(std::uint32_t head) const;
};

/// An opened file (or folder). Memory-mapped: what is not asked for is not read.
class SavedCache {
public:
    virtual ~SavedCache() = default;

    CacheFacts const& facts() const noexcept { return facts_; }
    Geometry const& geometry() const noexcept { return facts_.geometry; }

    /// `index` < layers. Several threads may ask at once.
    ///
    /// Errors: CorruptData or Io, beginning with the path.
    virtual Result<SavedLayer> layer(std::uint32_t index) const = 0;

    /// Reads a layer's every byte: checksums where there are any, and that K and V are finite.
    ///
    /// Errors: CorruptData, beginning with the path and naming the tensor.
    virtual Result<void> verify(std::uint32_t layer) const = 0;

    /// Errors: Io, beginning with the path, when a file of it was written to, or cut, since it was
    /// opened: what was read may be neither the old nor the new.
    virtual Result<void> check_unchanged() const = 0;

    /// The file's own bytes where it is one mapping: pages of it that have been read may be dropped
    /// from memory, and come back when they are wanted. Empty: nothing may be dropped.
    virtual std::span<std::byte const> mapped() const noexcept { return {}; }

protected:
    CacheFacts facts_;
};

/// What a format does not say of itself.
struct OpenOptions {
    std::optional<FileFormat> format = {};  ///< Nothing: found out from the bytes.
    /// vLLM: how one layer's tensor lies: "2THD", "T2HD" or "TH2D"; empty: unless it is
    /// unambiguous, refused.
    std::string layout = {};
    /// KV heads: llama.cpp and LMCache do not tell heads from dims. 0: unknown.
    std::uint32_t kv_heads = 0;
    std::string model = {};  ///< Instead of what the file says.
    RopeFacts rope = {};     ///< theta not 0: instead of what the file says.
};

/// Errors: Io (no such file, no permission, a FIFO; a folder where a file is due); CorruptData for
/// a file of another kind; Unsupported for a version or variant that is refused by name. Messages
/// begin with the path and name the field at fault. Nothing is allocated that the file's own size
/// does not justify.
Result<std::unique_ptr<SavedCache>> open_cache(std::filesystem::path const& path,
                                               OpenOptions const& options = {});

/// `error` of what was done with a file, beginning with its path unless it does already. Cancelled
/// stays as it is: it is of no file.
Error naming(std::filesystem::path const& path, Error error);

/// Whether a folder is one cache as a whole, if only one that open_cache() refuses: vLLM's layers,
/// LMCache's chunks.
bool is_cache_folder(std::filesystem::path const& path);

}  // namespace dkv
