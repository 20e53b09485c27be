// What a model's GGUF file says of its attention: what llama.cpp's saved states leave out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "cli/saved/formats/saved_cache.h"

namespace dkv {

struct GgufModel {
    std::string architecture;          ///< "llama"
    std::string name;                  ///< Empty: the file has none.
    std::uint32_t kv_heads = 0;        ///< Of every layer with attention.
    std::uint32_t sliding_window = 0;  ///< Tokens; 0: none.
    /// order_known and theta are left out where the architecture is none of those whose order of
    /// dims is known here. A scaling that no reader of ours can turn back is named as such.
    RopeFacts rope;
};

/// Of a split model the first file has it all. Nothing is allocated that the file's own size does
/// not justify.
///
/// Errors: Io; CorruptData, naming the field; Unsupported for a version other than 2 and 3, for
/// another byte order, and where the KV heads differ from layer to layer. Messages begin with the
/// path.
Result<GgufModel> read_gguf(std::filesystem::path const& path);

/// Puts what `model` says where `options` leaves it open: what was given goes first.
void complete(OpenOptions& options, GgufModel const& model);

}  // namespace dkv
