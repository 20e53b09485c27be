// A saved KV cache in dkv's own layout: a safetensors file with, for each layer l,
//
//   layers.{l}.keys       [kv_heads, n_prompt, head_dim]   f32, f16 or bf16, after RoPE
//   layers.{l}.values     the same
//   layers.{l}.q_window   [q_heads, rows, head_dim]        the last rows' queries; or in no layer
//
// and the metadata format "dkv", version "1", model, n_prompt; scale and softcap where the logits
// have them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/tensor_view.h"
#include "protocol/base/geometry.h"
#include "sidecar/files/mapped_file.h"

namespace dkv {

/// Views of the file: never to be written through.
struct SavedLayer {
    RowsView keys;
    RowsView values;
    RowsView queries;  ///< data nullptr: the file has none.
};

/// A whole prompt's cache, every shape checked.
class CacheFile {
public:
    /// Errors: Io; CorruptData for what is no such file (the message begins with the path and says
    /// which tensor or field is wrong); Unsupported for another version, and for a cache that has
    /// been compacted already.
    static Result<CacheFile> open(std::filesystem::path const& path);

    /// q_heads is kv_heads where the file has no queries.
    Geometry const& geometry() const noexcept { return geometry_; }
    std::string const& model() const noexcept { return model_; }
    std::uint32_t prompt_tokens() const noexcept { return prompt_tokens_; }
    /// How many of the last tokens' queries there are.
    std::uint32_t query_rows() const noexcept { return query_rows_; }
    float scale() const noexcept { return scale_; }  ///< 0: 1/sqrt(head_dim).
    float softcap() const noexcept { return softcap_; }
    SavedLayer const& layer(std::uint32_t index) const { return layers_.at(index); }

private:
    friend class CacheFileReader;
    explicit CacheFile(MappedFile file) : file_(std::move(file)) {}

    MappedFile file_;
    Geometry geometry_;
    std::string model_;
    std::uint32_t prompt_tokens_ = 0;
    std::uint32_t query_rows_ = 0;
    float scale_ = 0;
    float softcap_ = 0;
    std::vector<SavedLayer> layers_;
};

}  // namespace dkv
