// Remembers the last rows of every layer's post-RoPE queries while llama.cpp decodes a prompt, and
// the last key where a state does not say which of the model's layers it has.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "protocol/base/geometry.h"
#include "protocol/sdk/llama/library.h"

namespace dkv::llama {

class EvalWatch {
public:
    EvalWatch(Library const& library, std::uint32_t rows_max)
        : library_(library), rows_max_(rows_max) {}

    /// `key_heads` 0: no keys are remembered.
    void set_shape(std::uint32_t layers,
                   std::uint32_t heads,
                   std::uint32_t key_heads,
                   std::uint32_t head_dim);
    /// Forgets all rows, and asks for queries from now on. first: the position of the next token.
    void begin(std::uint32_t first);
    void end() noexcept { watching_ = false; }
    bool is_watching() const noexcept { return watching_; }
    std::uint32_t rows_max() const noexcept { return rows_max_; }
    /// The position of the first token whose queries were asked for.
    std::uint32_t first() const noexcept { return first_; }

    bool wants(ggml_tensor const* tensor) const;
    void take(ggml_tensor const* tensor);

    /// Errors: BadState, when a layer's queries were not seen once for each token from first() to
    /// `tokens`, or were not of the model's shape.
    Result<void> check_seen(std::uint32_t tokens) const;

    /// The last `rows` rows of a layer as `dtype` in `target` [rows, heads, head_dim].
    void copy_last(std::uint32_t index, std::uint32_t rows, Dtype dtype, std::byte* target) const;

    /// The layers whose last keys these are [layers, key_heads * head_dim], as a cache has stored
    /// them.
    ///
    /// Errors: Unsupported, when a row is not one layer's, or is like those of several.
    Result<std::vector<std::uint32_t>> layers_of(std::span<float const> keys) const;

private:
    struct Layer {
        std::vector<float> rows;  ///< [rows_max_, row_elements_], row r at r % rows_max_.
        std::uint64_t seen = 0;   ///< The position of the next token.
        std::vector<float> key;   ///< The last token's.
    };

    void take_queries(ggml_tensor const* tensor, std::uint32_t index);
    void take_key(ggml_tensor const* tensor, std::uint32_t index);
    /// The tensor's rows; 0, and noted as wrong: it is not dense rows of so many f32.
    std::uint64_t rows_of(ggml_tensor const* tensor, std::uint64_t row_elements);

    Library const& library_;
    std::uint32_t rows_max_;
    std::uint32_t first_ = 0;
    std::uint64_t row_elements_ = 0;
    std::uint64_t key_elements_ = 0;
    std::vector<Layer> layers_;
    std::string wrong_;  ///< What was not as expected; empty: nothing.
    bool watching_ = false;
};

}  // namespace dkv::llama
