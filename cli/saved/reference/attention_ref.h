// Attention as the published codes compute it, in the model's dtype: every step rounded where torch
// rounds it.
//
// To the bit where products and sums are: with bf16 and f16 a product of rows that f32 holds
// exactly, whatever the order, is rounded once, as torch's is. Not to the bit: products in f32 (the
// order of a matmul's sums is the library's own), and the softmax, whose exponential and sum are
// vectorised in torch; both may differ in f32's last bits, which the cast to bf16 or f16 mostly
// takes away.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"

namespace dkv::reference {

/// The nearest number that `dtype` holds, ties to even; beyond its range infinite.
float rounded_to(Dtype dtype, float value) noexcept;

/// torch's sum over rows on CPU, in f32, row after row: in runs of 16 (or more, where there are
/// more than 65536 rows), which are then added up.
class RowSum {
public:
    RowSum(std::size_t rows, std::size_t columns);

    void add(std::span<float const> row);
    /// After the last row. [columns]
    std::vector<float> total() const;

private:
    static constexpr std::size_t kLevels = 4;

    std::size_t level_power_;
    std::size_t columns_;
    std::size_t rows_added_ = 0;
    std::vector<float> levels_[kLevels];
};

/// One layer of one prompt: numbers that `dtype` holds, as f32.
struct AttentionInput {
    std::span<float const> queries;  ///< [q_heads, query_rows, head_dim], the prompt's last rows.
    std::span<float const> keys;     ///< [kv_heads, tokens, head_dim]
    std::uint32_t q_heads = 0;
    std::uint32_t kv_heads = 0;
    std::uint32_t query_rows = 0;
    std::uint32_t tokens = 0;
    std::uint32_t head_dim = 0;
    Dtype dtype = Dtype::F32;
    std::span<float const> sink_logits = {};  ///< [q_heads]; empty: none.
};

/// The attention of the last `rows` queries, added up per query head and column:
///
///   S = Q K^T in the dtype; S / sqrt(head_dim) in the dtype; causal; softmax in f32, cast to the
///   dtype; Σ over the queries in f32, cast to the dtype
///
/// With sinks, of which the published codes know nothing, the softmax has one more column, as
/// transformers' gpt-oss has it: the head's sink, cast to the dtype. It is left out of the sums.
///
///   returns  [q_heads, columns]: the first `columns` tokens
///
/// Errors: InvalidArgument, naming the value: sizes that disagree, rows 0 or more than there are
/// queries, columns above tokens, q_heads no multiple of kv_heads, a sink that is not finite.
Result<std::vector<float>> attention_sums(AttentionInput const& input,
                                          std::uint32_t rows,
                                          std::uint32_t columns);

}  // namespace dkv::reference
