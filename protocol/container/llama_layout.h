// Where the parts of a llama.cpp sequence lie in its bytes; nothing is copied but cells and tokens.
//
//   file      u32 magic, u32 version, u32 words, i32 tokens[words], (session: u32, arch name),
//   body,
//             (appended checkpoints)
//   blob      u32 magic, i32 sequence, body                  (llama_state_seq_get_data)
//             of layers with a sliding window beside full ones (iSWA): the full ones' body, theirs
//   body      u32 streams, for each: u32 cells; unless 0: cell table, data
//   cell      i32 position, u32 sequences, i32 sequence[…]
//   data      u32 transposed, u32 layers, (newer: u32 rotation of K, u32 rotation of V)
//             K of each layer: i32 type, u64 row bytes, rows [cells][kv_heads][head_dim]
//             V of each layer: the same; transposed: i32 type, u32 element bytes, u32 row elements,
//                              elements [kv_heads][head_dim][cells]
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "protocol/base/result.h"
#include "protocol/container/ggml_types.h"

namespace dkv {

constexpr std::uint32_t kLlamaSequenceMagic = 0x67677371;  // "ggsq"
constexpr std::uint32_t kLlamaSessionMagic = 0x6767736e;   // "ggsn"
constexpr std::uint32_t kLlamaBlobMagic = 0xaf143cd8;
constexpr std::uint32_t kLlamaCheckpointMagic = 0x504b4353;  // "SCKP"
// From these versions on the data say how K and V are rotated. Older ones that are read: 2, 3; 10.
constexpr std::uint32_t kLlamaSequenceVersion = 4;
constexpr std::uint32_t kLlamaSessionVersion = 11;

enum class LlamaKind : std::uint8_t {
    Sequence,  ///< A file: llama_state_seq_save_file, a llama-server slot.
    Session,   ///< A file: llama_state_save_file.
    Blob,      ///< llama_state_seq_get_data.
    Bare       ///< The same of an older library, without a magic.
};

/// How K, or V, of every layer is stored.
struct LlamaRows {
    GgmlType const* type = nullptr;
    /// Runs of so many elements were turned by a Hadamard matrix before they were stored; 0: none.
    std::uint32_t rotation = 0;
};

/// What a server appended: its states at earlier tokens (SCKP).
struct LlamaCheckpoints {
    std::uint32_t version = 0;
    std::uint32_t count = 0;
    std::uint64_t bytes = 0;  ///< All of it; 0: there are none.
    /// The newest that is of the sliding layers alone: a cut of the full ones leaves it true.
    std::uint64_t newest_offset = 0;
    std::uint64_t newest_bytes = 0;  ///< 0: there is no such one.
    std::int64_t newest_tokens = 0;  ///< That it is a state after.
};

/// The cache of the layers with a sliding window, which follows that of the full ones (iSWA). It is
/// bounded already, and is copied as it is.
struct LlamaSliding {
    std::uint32_t layers = 0;  ///< 0: there is none.
    std::uint32_t cells = 0;
    std::uint64_t bytes = 0;
};

/// Of an iSWA model, `positions` to `values` are the full layers'.
struct LlamaLayout {
    LlamaKind kind = LlamaKind::Bare;
    std::uint32_t version = 0;
    std::string arch;                     ///< A session's; else empty.
    std::vector<std::int32_t> tokens;     ///< Empty: none, or not only text.
    std::uint32_t media = 0;              ///< Images and sounds in the token section.
    std::uint64_t streams_offset = 0;     ///< Of the body.
    std::uint64_t count_offset = 0;       ///< Of the cell count of the one stream that has cells.
    std::vector<std::int32_t> positions;  ///< [cells], in the file's order.
    std::uint64_t cell_bytes = 0;
    bool transposed = false;
    bool says_rotation = false;  ///< The data have the two words of it.
    LlamaRows key_rows;
    LlamaRows value_rows;
    std::uint64_t row_elements = 0;     ///< kv_heads × head_dim
    std::vector<std::uint64_t> keys;    ///< [layers] offset of the first element.
    std::vector<std::uint64_t> values;  ///< Likewise.
    /// What follows are empty streams, the sliding layers, then checkpoints.
    std::uint64_t end_offset = 0;
    LlamaSliding sliding;
    LlamaCheckpoints checkpoints;

    std::uint64_t cells_offset() const noexcept { return count_offset + sizeof(std::uint32_t); }
    /// Rows of a type that is read as it lies: both parts of one dtype, neither rotated.
    bool is_plain() const noexcept {
        return key_rows.type->dtype && key_rows.type->dtype == value_rows.type->dtype &&
               key_rows.rotation == 0 && value_rows.rotation == 0;
    }
};

/// `bare`: bytes without a magic are taken for a body.
///
/// Errors: CorruptData, naming the field and its value; Unsupported, by name: versions, types of
/// rows, recurrent and hybrid models, M-RoPE, MLA, several sequences, bytes behind the last layer.
Result<LlamaLayout> parse_llama(std::span<std::byte const> file, bool bare);

}  // namespace dkv
