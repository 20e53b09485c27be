// Where the parts of a llama.cpp sequence lie in its bytes; nothing is copied but cells and tokens.
//
//   file      u32 magic, u32 version, u32 words, i32 tokens[words], (session: u32, arch name), body
//   blob      u32 magic, i32 sequence, body                  (llama_state_seq_get_data)
//   body      u32 streams, for each: u32 cells; unless 0: cell table, data
//   cell      i32 position, u32 sequences, i32 sequence[…]
//   data      u32 transposed, u32 layers,
//             K of each layer: i32 type, u64 row bytes, rows [cells][kv_heads][head_dim]
//             V of each layer: the same; transposed: i32 type, u32 element bytes, u32 row elements,
//                              elements [kv_heads][head_dim][cells]
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"

namespace dkv {

constexpr std::uint32_t kLlamaSequenceMagic = 0x67677371;  // "ggsq"
constexpr std::uint32_t kLlamaSessionMagic = 0x6767736e;   // "ggsn"
constexpr std::uint32_t kLlamaBlobMagic = 0xaf143cd8;
constexpr std::uint32_t kLlamaSequenceVersion = 3;  // Written; 2 is read, too.
constexpr std::uint32_t kLlamaSessionVersion = 10;

enum class LlamaKind : std::uint8_t {
    Sequence,  ///< A file: llama_state_seq_save_file, a llama-server slot.
    Session,   ///< A file: llama_state_save_file.
    Blob,      ///< llama_state_seq_get_data.
    Bare       ///< The same of an older library, without a magic.
};

struct LlamaLayout {
    LlamaKind kind = LlamaKind::Bare;
    std::uint32_t version = 0;
    std::string arch;                     ///< A session's; else empty.
    std::vector<std::int32_t> tokens;     ///< Empty: none, or not only text.
    std::uint64_t streams_offset = 0;     ///< Of the body.
    std::uint64_t count_offset = 0;       ///< Of the cell count of the one stream that has cells.
    std::vector<std::int32_t> positions;  ///< [cells], in the file's order.
    std::uint64_t cell_bytes = 0;
    bool transposed = false;
    Dtype dtype = Dtype::F32;
    std::uint64_t row_elements = 0;     ///< kv_heads × head_dim
    std::vector<std::uint64_t> keys;    ///< [layers] offset of the first element.
    std::vector<std::uint64_t> values;  ///< Likewise.
    std::uint64_t end_offset = 0;       ///< What follows are empty streams.

    std::uint64_t cells_offset() const noexcept { return count_offset + sizeof(std::uint32_t); }
};

/// `bare`: bytes without a magic are taken for a body.
///
/// Errors: CorruptData, naming the field and its value; Unsupported, by name: versions, quantised
/// types, sliding windows (iSWA), recurrent and hybrid models, M-RoPE, MLA, several sequences.
Result<LlamaLayout> parse_llama(std::span<std::byte const> file, bool bare);

/// The number that ggml has for a type of rows.
std::int32_t ggml_type_of(Dtype dtype) noexcept;

}  // namespace dkv
