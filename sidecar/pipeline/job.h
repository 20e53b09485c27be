// One prompt's compression, from its first layer to its packed cache: plan → score → select →
// gather. The same under the live sidecar and under offline tools. Knows neither sessions nor
// messages.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "protocol/base/geometry.h"
#include "protocol/base/kv_layout.h"
#include "sidecar/metrics/stages.h"
#include "sidecar/policy/policy.h"

namespace dkv {

/// Rows that a KV head keeps are rounded up with its next best ones, so that they fill the engine's
/// blocks. A multiple of 1 rounds nothing.
struct RowRounding {
    std::uint32_t multiple = 1;  ///< At least 1.
    std::uint32_t offset = 0;    ///< Below `multiple`.

    /// The least number from `rows` on that is `offset` (mod `multiple`); at most `most`.
    std::uint32_t up(std::uint32_t rows, std::uint32_t most) const noexcept;
};

/// What to do with one prompt.
struct JobSpec {
    Geometry geometry;
    std::uint32_t prompt_tokens = 0;
    PolicyParams params;
    bool progressive = true;  ///< Stage rows as layers come, so that the source may be dropped.
    RowRounding rounding = {};
    bool uniform = false;  ///< As PromptShape.
};

/// Bytes a job needs from the engine. All 0 when the prompt is kept whole.
struct JobNeeds {
    bool compress = false;
    std::uint32_t window = 0;      ///< Query rows wanted with each layer: all of them for h2o.
    std::uint32_t stage_rows = 0;  ///< rows_max of the staging layout; 0: nothing is staged.
    std::uint64_t staging_bytes = 0;
    std::uint64_t destination_bytes = 0;
};
JobNeeds needs_of(JobSpec const& spec);

/// One layer as the engine has it. Views must stay valid during layer_ready(), and until finish()
/// when the job is not progressive.
struct LayerSource {
    RowsView keys;     ///< [kv_heads, prompt_tokens, head_dim]
    RowsView values;   ///< [kv_heads, prompt_tokens, head_dim]
    RowsView queries;  ///< [q_heads, window (h2o: prompt_tokens), head_dim]; data nullptr: none.
    RowsView scores;   ///< [q_heads or kv_heads, prompt_tokens, 1] f32; data nullptr: none.
    float scale = 0;
    float softcap = 0;
    std::span<float const> sink_logits;  ///< [q_heads], the host's; empty: none.
};

enum class LayerStage : std::uint8_t { Scored = 0, Staged = 1, Trimmed = 2, Committed = 3 };

/// Something happened to a layer. After Staged and Committed its source is not read again.
struct LayerProgress {
    std::uint32_t layer = 0;
    LayerStage stage = LayerStage::Scored;
    std::vector<std::uint32_t> lengths;    ///< [kv_heads] rows, window included.
    std::uint64_t destination_offset = 0;  ///< Committed: where the packed layer begins.
};

/// What came of it.
struct JobOutcome {
    std::vector<std::uint32_t> lengths;  ///< [layers, kv_heads] rows, window included.
    std::vector<float> mass_kept;  ///< [layers] share of the window's attention; empty: unknown.
    std::uint64_t bytes_full = 0;
    std::uint64_t bytes_kept = 0;
    std::uint64_t bytes_block_table = 0;  ///< What one block table for all layers would give back.
};

class Job {
public:
    /// staging and destination have at least needs_of(spec)'s bytes; memory of `backend`, written.
    /// Both outlive the job, as does the backend.
    static Result<std::unique_ptr<Job>> open(Backend& backend,
                                             JobSpec const& spec,
                                             std::span<std::byte> staging,
                                             std::span<std::byte> destination);
    virtual ~Job() = default;

    /// Takes the next layer. What it returns has happened, in this order: the layer itself
    /// (Committed when budgets are known beforehand, else Staged, else Scored), then the layers
    /// trimmed by an update.
    ///
    /// Policies that rank by attention take it from the queries, else from `scores`. Mass kept is
    /// that of the window's queries whatever the policy ranks by; of the scores of an engine only
    /// where they are the window's, which h2o's are not.
    ///
    /// `source` has passed check() of layer_source.h. Errors: BadState when `layer` is not the next
    /// one.
    virtual Result<std::vector<LayerProgress>> layer_ready(std::uint32_t layer,
                                                           LayerSource const& source) = 0;

    /// Layers taken so far.
    virtual std::uint32_t layers_done() const noexcept = 0;
    /// [layers, kv_heads] rows as the budgets stand now, window included.
    virtual std::vector<std::uint32_t> lengths() const = 0;

    /// After the last layer: packs `layer` into the destination. Call for 0 … layers-1 in order; a
    /// layer that is packed already returns its place again.
    virtual Result<LayerProgress> pack(std::uint32_t layer) = 0;

    /// What layer_ready() and pack() spent since the last call of this.
    virtual std::vector<Span> take_spans() = 0;

    /// After the last pack. Errors: BadState before.
    virtual Result<JobOutcome> outcome() const = 0;
};

}  // namespace dkv
