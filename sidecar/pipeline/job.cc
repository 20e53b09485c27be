#include "sidecar/pipeline/job.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "protocol/base/assert.h"
#include "sidecar/pipeline/layer_source.h"
#include "sidecar/pipeline/plan.h"
#include "sidecar/pipeline/row_copier.h"
#include "sidecar/pipeline/row_lists.h"
#include "sidecar/pipeline/savings.h"
#include "sidecar/pipeline/spec.h"

namespace dkv {
namespace {

/// What a layer is packed from, and where to.
struct TakenLayer {
    RowsView keys;  ///< Only while the layer waits in its source.
    RowsView values;
    std::optional<PackedLayer> place;
};

/// A plan, and the rows that it decides on. Every step that can fail comes before the job changes:
/// after an error the same call may be made again, and what a failed attempt wrote is written over.
class PromptJob final : public Job {
public:
    PromptJob(Backend& backend,
              std::unique_ptr<BackendRoom> room,
              Ranker ranker,
              Plan plan,
              std::span<std::byte> staging,
              std::span<std::byte> destination)
        : backend_(backend),
          room_(std::move(room)),
          ranker_(std::move(ranker)),
          plan_(std::move(plan)),
          waiting_(waiting_of(spec(), plan_.policy())),
          layout_(staging_layout(spec(), plan_.policy())),
          staging_(staging),
          destination_(destination),
          copier_(backend) {}

    /// Work that is still queued may read what this job owns.
    ~PromptJob() override { static_cast<void>(backend_.synchronize()); }

    Result<std::vector<LayerProgress>> layer_ready(std::uint32_t layer,
                                                   LayerSource const& source) override;
    std::uint32_t layers_done() const noexcept override { return plan_.layers_done(); }
    std::vector<std::uint32_t> lengths() const override { return plan_.budgeted_lengths(); }
    Result<LayerProgress> pack(std::uint32_t layer) override;
    std::vector<Span> take_spans() override { return std::exchange(spans_, {}); }
    Result<JobOutcome> outcome() const override;

private:
    JobSpec const& spec() const noexcept { return plan_.spec(); }
    std::uint32_t window() const noexcept { return spec().params.window; }
    std::uint32_t prefix() const noexcept { return spec().prompt_tokens - window(); }

    Result<void> stage(std::uint32_t layer, RankedLayer const& ranks, TakenLayer const& taken);
    RowsView staged_view(std::uint64_t offset) const;
    Result<PackedLayer> pack_rows(std::uint32_t layer,
                                  RankedLayer const& ranks,
                                  TakenLayer const& taken);
    LayerProgress progress(std::uint32_t layer, LayerStage stage) const;
    Result<Plan::Weighed> weigh(std::uint32_t layer);

    Backend& backend_;
    std::unique_ptr<BackendRoom> const room_;  // Given up behind the buffers in it.
    Ranker ranker_;
    Plan plan_;
    Waiting const waiting_;
    StagingLayout const layout_;
    std::span<std::byte> const staging_;
    std::span<std::byte> const destination_;
    RowCopier copier_;
    std::vector<TakenLayer> layers_;
    std::vector<Span> spans_;
    std::uint32_t layers_packed_ = 0;
    Place place_ = Place::Host;  // Of the engine's rows, and so of the buffers that it lent.
};

Result<std::vector<LayerProgress>> PromptJob::layer_ready(std::uint32_t layer,
                                                          LayerSource const& source) {
    DKV_TRY(plan_.check_turn(layer));
    DKV_ASSERT(check(source, spec()));

    ranker_.take(source);
    place_ = source.keys.place;
    Plan::Weighed weighed = DKV_TRY(weigh(layer));
    TakenLayer taken{.keys = source.keys, .values = source.values, .place = std::nullopt};
    LayerProgress happened{.layer = layer,
                           .stage = LayerStage::Scored,
                           .lengths = weighed.ranks.lengths(window()),
                           .destination_offset = 0};
    if (waiting_ == Waiting::NotAtAll) {
        taken.place = DKV_TRY(pack_rows(layer, weighed.ranks, taken));
        happened.stage = LayerStage::Committed;
        happened.destination_offset = taken.place->keys_offset;
    }
    if (waiting_ == Waiting::Staged) {
        DKV_TRY(stage(layer, weighed.ranks, taken));
        happened.stage = LayerStage::Staged;
    }

    // Nothing fails from here on.
    if (waiting_ != Waiting::InSource) taken.keys = taken.values = {};
    layers_.push_back(std::move(taken));
    layers_packed_ += waiting_ == Waiting::NotAtAll ? 1 : 0;
    std::vector<LayerProgress> all{std::move(happened)};
    for (std::uint32_t const trimmed : plan_.take(std::move(weighed)))
        if (waiting_ == Waiting::Staged) all.push_back(progress(trimmed, LayerStage::Trimmed));
    return all;
}

/// The ranker scores first and selects then; where two scorings take turns, its second scoring is
/// counted with the first.
Result<Plan::Weighed> PromptJob::weigh(std::uint32_t layer) {
    auto const number = static_cast<std::int32_t>(layer);
    auto const begin = steady_ns();
    auto weighed = plan_.weigh(layer, ranker_);
    auto const all = steady_ns() - begin;
    auto const score = std::min(all, ranker_.take_score_ns());
    spans_.push_back({Stage::Score, number, begin, score});
    spans_.push_back({Stage::Select, number, begin + score, all - score});
    return weighed;
}

Result<void> PromptJob::stage(std::uint32_t layer,
                              RankedLayer const& ranks,
                              TakenLayer const& taken) {
    auto const begin = steady_ns();
    RowsMove keys{.source = taken.keys, .out_offsets = {}};
    RowsMove values{.source = taken.values, .out_offsets = {}};
    for (std::uint32_t head = 0; head < spec().geometry.kv_heads; ++head) {
        keys.out_offsets.push_back(layout_.keys_offset(layer, head));
        values.out_offsets.push_back(layout_.values_offset(layer, head));
    }
    DKV_TRY(copier_.copy(staged_rows(ranks, prefix(), window()), ranks.lengths(window()), keys,
                         values, staging_));
    spans_.push_back(span_since(begin, Stage::Stage, static_cast<std::int32_t>(layer)));
    return {};
}

Result<LayerProgress> PromptJob::pack(std::uint32_t layer) {
    if (layer < layers_packed_) return progress(layer, LayerStage::Committed);
    if (!plan_.all_taken())
        return Error{ErrorCode::BadState,
                     "layer " + std::to_string(layer) + " cannot be packed when " +
                         std::to_string(layers_.size()) + " of " +
                         std::to_string(spec().geometry.layers) + " layers have come"};
    if (layer >= spec().geometry.layers || layer != layers_packed_)
        return Error{ErrorCode::BadState, "layer " + std::to_string(layer) +
                                              " cannot be packed when " +
                                              std::to_string(layers_packed_) + " of " +
                                              std::to_string(spec().geometry.layers) + " are"};

    layers_[layer].place =
        DKV_TRY(pack_rows(layer, std::as_const(plan_).layer(layer), layers_[layer]));
    ++layers_packed_;
    return progress(layer, LayerStage::Committed);
}

RowsView PromptJob::staged_view(std::uint64_t offset) const {
    RowsView view =
        dense_rows(staging_.data() + offset, spec().geometry.dtype, spec().geometry.kv_heads,
                   layout_.rows_max, spec().geometry.head_dim);
    view.head_stride = layout_.segment_bytes() / bytes_of(spec().geometry.dtype);
    view.place = place_;
    return view;
}

/// After the layers that are packed already.
Result<PackedLayer> PromptJob::pack_rows(std::uint32_t layer,
                                         RankedLayer const& ranks,
                                         TakenLayer const& taken) {
    auto const begun = steady_ns();
    auto const lengths = ranks.lengths(window());
    std::uint64_t const begin =
        layers_packed_ == 0 ? 0 : layers_[layers_packed_ - 1].place->end_offset;
    PackedLayer place = packed_layer(spec().geometry, lengths, begin);
    DKV_ASSERT(place.end_offset <= destination_.size());

    bool const staged = waiting_ == Waiting::Staged;
    RowsMove keys{.source = staged ? staged_view(layout_.keys_offset(layer, 0)) : taken.keys,
                  .out_offsets = {}};
    RowsMove values{.source = staged ? staged_view(layout_.values_offset(layer, 0)) : taken.values,
                    .out_offsets = {}};
    for (std::uint32_t head = 0; head < spec().geometry.kv_heads; ++head) {
        std::uint64_t const offset = place.head_rows[head] * spec().geometry.row_bytes();
        keys.out_offsets.push_back(place.keys_offset + offset);
        values.out_offsets.push_back(place.values_offset + offset);
    }

    PackedRows const rows = packed_rows(ranks, prefix(), window());
    auto const positions = std::as_bytes(std::span(rows.positions));
    DKV_TRY(
        backend_.upload(positions, destination_.subspan(place.positions_offset, positions.size())));
    DKV_TRY(
        copier_.copy(staged ? rows.slots : rows.positions, lengths, keys, values, destination_));
    spans_.push_back(span_since(begun, Stage::Pack, static_cast<std::int32_t>(layer)));
    return place;
}

LayerProgress PromptJob::progress(std::uint32_t layer, LayerStage stage) const {
    TakenLayer const& taken = layers_[layer];
    return {.layer = layer,
            .stage = stage,
            .lengths = plan_.layer(layer).lengths(window()),
            .destination_offset = taken.place ? taken.place->keys_offset : 0};
}

Result<JobOutcome> PromptJob::outcome() const {
    if (layers_packed_ != spec().geometry.layers)
        return Error{ErrorCode::BadState, std::to_string(layers_packed_) + " of " +
                                              std::to_string(spec().geometry.layers) +
                                              " layers are packed"};
    JobOutcome outcome;
    outcome.lengths = plan_.kept_lengths();
    outcome.mass_kept = plan_.mass_kept();
    outcome.bytes_full = spec().geometry.cache_bytes(spec().prompt_tokens);
    outcome.bytes_kept = kept_bytes(spec().geometry, outcome.lengths);
    outcome.bytes_block_table =
        block_table_bytes(spec().geometry, spec().prompt_tokens, outcome.lengths);
    return outcome;
}

}  // namespace

Result<std::unique_ptr<Job>> Job::open(Backend& backend,
                                       JobSpec const& spec,
                                       std::span<std::byte> staging,
                                       std::span<std::byte> destination) {
    DKV_TRY(check(spec, staging, destination));
    auto const policy = make_policy(spec.params, shape_of(spec));
    auto room = DKV_TRY(backend.make_room(sizes_of(spec, *policy)));
    Ranker ranker(backend, spec.geometry, spec.prompt_tokens);
    Plan plan = DKV_TRY(Plan::create(backend, spec, ranker));
    return std::unique_ptr<Job>(std::make_unique<PromptJob>(
        backend, std::move(room), std::move(ranker), std::move(plan), staging, destination));
}

}  // namespace dkv
