// What `score` and `accumulate` share: the attention of some queries to the keys that they see, in
// two passes over those keys.
//
// A KV head's queries are rows: its group's heads one after another, each head's window padded to
// whole eights, all of them padded to whole chunks. pack_queries() puts them into the order in
// which a warp's lanes meet them; statistics() leaves {largest logit, weight} of each row; sums()
// weighs and adds per token and head.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/gather_rows.h"
#include "kernels/cuda/queue.h"
#include "kernels/tensor_view.h"
#include "protocol/base/score_options.h"

namespace dkv::cuda {

inline constexpr float kLog2E = 1.44269504F;
inline constexpr unsigned kPassWarps = 4;
inline constexpr unsigned kPassThreads = 32 * kPassWarps;
inline constexpr std::uint32_t kHeadDimMax = 640;  ///< Two tiles of f32 keys and what chunks keep.
/// What every architecture from sm_80 on gives to a block.
inline constexpr std::size_t kSharedBytesMax = std::size_t{99} << 10U;

/// Keys or queries as a kernel reads them.
struct PassRows {
    RowsOnDevice at;
    std::uint32_t head_dim;
    Dtype dtype;
    bool wide;  ///< Rows are whole, aligned pieces of 16 bytes, one after another.
};

/// The query of row r, head r / window_rows and token prefix + r % window_rows, sees the tokens up
/// to its own.
struct PassShape {
    std::uint32_t kv_heads;
    std::uint32_t group;
    std::uint32_t window;
    std::uint32_t window_rows;  ///< window, up to whole eights.
    std::uint32_t rows;         ///< group * window_rows
    std::uint32_t rows_padded;  ///< Up to whole chunks.
    std::uint32_t prefix;       ///< Tokens before the window.
    std::uint32_t head_dim;
    float scale;    ///< With kLog2E in it unless there is a soft cap.
    float softcap;  ///< 0: none.
    float inverse_softcap;
};

/// A row's statistics; of rows that pad, the weight is 0.
struct RowWeight {
    float largest;  ///< Logit, to base 2.
    float weight;   ///< A weight times 2^(logit - largest) is what the row gives to a token.
};

/// Of a row and some tokens: `sum` is Σ 2^(logit - largest).
struct RowSum {
    float largest;
    float sum;
};

/// Scratch that a pass wants.
struct PassNeeds {
    std::size_t packed_bytes;
    std::size_t rows;
    std::size_t partials;
    std::size_t sinks;  ///< Floats, should the model have sinks.
    std::uint64_t scratch_bytes() const {
        return Queue::scratch_rounded(packed_bytes) +
               Queue::scratch_rounded(rows * sizeof(RowWeight)) +
               Queue::scratch_rounded(partials * sizeof(RowSum)) +
               Queue::scratch_rounded(sinks * sizeof(float));
    }
};

/// How the products are computed.
enum class Products : std::uint8_t {
    F16,   ///< On tensor cores, head_dim up to 256.
    Bf16,  ///< The same.
    F32,   ///< Any dtype, widened.
};

/// Where sums() leaves what tokens [0, columns) are given.
struct SumsTarget {
    float* scores;  ///< [rows, stride]; a row for each query head with None, else for each KV head.
    float* mass;    ///< [kv_heads, stride]: the mean over the group; or null.
    float* peaks;   ///< [kv_heads, stride]: the largest of any row, over `share`; or null.
    std::uint64_t stride;
    std::uint32_t columns;
    GroupReduce reduce;
    std::uint32_t begun;  ///< Of the columns, those that have sums to add to: 0 with peaks.
    float share;          ///< Of a row in the sums.
};

class Pass {
public:
    /// `queries` are those of the tokens from `prefix` on; keys.tokens beyond the last of them are
    /// not met. Errors: Unsupported when head_dim is above kHeadDimMax.
    static Result<Pass> plan(RowsView const& queries,
                             RowsView const& keys,
                             std::uint32_t prefix,
                             float scale,
                             float softcap);

    PassNeeds needs() const {
        return {packed_bytes_, std::size_t{shape_.kv_heads} * shape_.rows_padded, partials(),
                std::size_t{shape_.kv_heads} * shape_.group};
    }
    /// Scratch of the queue's. `needs` may be larger than this pass's own. `sinks` [q_heads] are
    /// the host's, read before this returns; empty: none.
    Result<void> take_memory(Queue& queue, PassNeeds const& needs, std::span<float const> sinks);
    /// That of a pass before this one on the same queue, taken for this one's needs, too.
    void share_memory(Pass const& before) { memory_ = before.memory_; }

    Result<void> pack_queries(Queue& queue);
    /// Each row's largest logit and 1 / Σ 2^(logit - largest), times `share`.
    Result<void> statistics(Queue& queue, float share);
    /// After either: the sinks' part of each row's sum. Without sinks nothing is launched.
    Result<void> join_sinks(Queue& queue, float share) const;
    Result<void> sums(Queue& queue, SumsTarget const& target) const;

private:
    Pass() = default;
    std::size_t partials() const;

    PassShape shape_{};
    PassRows queries_{};
    PassRows keys_{};
    Products products_{};
    std::uint32_t row_warps_ = 0;  // Warps of a block that share a tile's rows; others its tokens.
    std::size_t packed_bytes_ = 0;
    struct Memory {
        unsigned char* packed;  // [kv_heads, rows_padded], as the products want them.
        RowWeight* weights;     // [kv_heads, rows_padded]
        RowSum* partials;       // [kv_heads, rows_padded, parts of the tokens]
        float const* sinks;     // [q_heads], or null
    } memory_{};
};

}  // namespace dkv::cuda
