#include "sidecar/pipeline/job.h"

#include <limits>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "sidecar/pipeline/layer_source.h"
#include "sidecar/pipeline/ranker.h"
#include "sidecar/pipeline/row_copier.h"
#include "sidecar/pipeline/row_lists.h"
#include "sidecar/pipeline/savings.h"
#include "sidecar/pipeline/spec.h"

namespace dkv {
namespace {

/// A layer that has been taken.
struct TakenLayer {
    RankedLayer ranks;
    BackendArray<float> pooled;  ///< As long as a tally may read it.
    float scale = 1;             ///< Of its scores in tallies.
    RowsView keys;               ///< Only while the layer waits in its source.
    RowsView values;             ///< Likewise.
    std::optional<PackedLayer> place;
};

/// Every step that can fail comes before the job changes: after an error the same call may be made
/// again, and what a failed attempt wrote is written over.
class PromptJob final : public Job {
public:
    PromptJob(Backend& backend,
              JobSpec spec,
              std::unique_ptr<Policy> policy,
              std::span<std::byte> staging,
              std::span<std::byte> destination)
        : backend_(backend),
          spec_(std::move(spec)),
          policy_(std::move(policy)),
          waiting_(waiting_of(spec_, *policy_)),
          layout_(staging_layout(spec_, *policy_)),
          staging_(staging),
          destination_(destination),
          copier_(backend) {}

    /// Work that is still queued may read what this job owns.
    ~PromptJob() override { static_cast<void>(backend_.synchronize()); }

    Result<void> prepare() {
        ranker_ = DKV_TRY(Ranker::create(backend_, spec_, *policy_));
        return {};
    }

    Result<std::vector<LayerProgress>> layer_ready(std::uint32_t layer,
                                                   LayerSource const& source) override;
    std::uint32_t layers_done() const noexcept override {
        return static_cast<std::uint32_t>(layers_.size());
    }
    std::vector<std::uint32_t> lengths() const override;
    Result<LayerProgress> pack(std::uint32_t layer) override;
    Result<JobOutcome> outcome() const override;

private:
    std::uint32_t window() const noexcept { return spec_.params.window; }
    std::uint32_t prefix() const noexcept { return spec_.prompt_tokens - window(); }
    bool all_taken() const noexcept { return layers_.size() == spec_.geometry.layers; }

    Result<void> check_turn(std::uint32_t layer) const;
    Result<void> stage(std::uint32_t layer, TakenLayer const& taken);
    Result<float> tally_scale(TakenLayer const& taken);
    Result<std::vector<std::uint64_t>> counts_with(std::uint32_t layer, TakenLayer const& taken);
    Result<void> settle(std::uint32_t layer,
                        TakenLayer& taken,
                        std::vector<std::uint64_t> const& counts);
    std::vector<LayerProgress> rebalance(std::vector<std::uint64_t> const& counts);
    RowsView staged_view(std::uint64_t offset) const;
    Result<PackedLayer> pack_rows(std::uint32_t layer, TakenLayer const& taken);
    LayerProgress progress(std::uint32_t layer, LayerStage stage) const;

    Backend& backend_;
    JobSpec const spec_;
    std::unique_ptr<Policy> const policy_;
    Waiting const waiting_;
    StagingLayout const layout_;
    std::span<std::byte> const staging_;
    std::span<std::byte> const destination_;
    RowCopier copier_;
    std::optional<Ranker> ranker_;
    std::vector<TakenLayer> layers_;
    std::uint32_t layers_packed_ = 0;
};

Result<std::vector<LayerProgress>> PromptJob::layer_ready(std::uint32_t layer,
                                                          LayerSource const& source) {
    DKV_TRY(check_turn(layer));
    DKV_TRY(check(source, spec_, policy_->ranking()));

    Ranked ranked = DKV_TRY(ranker_->rank(layer, source));
    TakenLayer taken{.ranks = std::move(ranked.layer),
                     .pooled = std::move(ranked.pooled),
                     .scale = 1,
                     .keys = source.keys,
                     .values = source.values,
                     .place = std::nullopt};
    taken.scale = DKV_TRY(tally_scale(taken));
    auto const counts = DKV_TRY(counts_with(layer, taken));
    if (waiting_ == Waiting::NotAtAll) {
        DKV_TRY(settle(layer, taken, counts));
        taken.place = DKV_TRY(pack_rows(layer, taken));
        taken.pooled = {};
    }
    if (waiting_ == Waiting::Staged) DKV_TRY(stage(layer, taken));

    // Nothing fails from here on.
    if (waiting_ != Waiting::InSource) taken.keys = taken.values = {};
    layers_.push_back(std::move(taken));
    layers_packed_ += waiting_ == Waiting::NotAtAll ? 1 : 0;
    LayerStage const stage = waiting_ == Waiting::NotAtAll ? LayerStage::Committed
                             : waiting_ == Waiting::Staged ? LayerStage::Staged
                                                           : LayerStage::Scored;
    std::vector<LayerProgress> happened{progress(layer, stage)};
    if (waiting_ != Waiting::NotAtAll && !counts.empty())
        for (LayerProgress& trimmed : rebalance(counts))
            happened.push_back(std::move(trimmed));
    if (all_taken())
        for (TakenLayer& one : layers_)
            one.pooled = {};
    return happened;
}

Result<void> PromptJob::check_turn(std::uint32_t layer) const {
    if (all_taken())
        return Error{ErrorCode::BadState, "layer " + std::to_string(layer) + " comes after all " +
                                              std::to_string(layers_.size()) + " layers"};
    if (layer != layers_.size())
        return Error{ErrorCode::BadState, "layer " + std::to_string(layer) + " comes when layer " +
                                              std::to_string(layers_.size()) + " is next"};
    return {};
}

Result<void> PromptJob::stage(std::uint32_t layer, TakenLayer const& taken) {
    RowsMove keys{.source = taken.keys, .out_offsets = {}};
    RowsMove values{.source = taken.values, .out_offsets = {}};
    for (std::uint32_t head = 0; head < spec_.geometry.kv_heads; ++head) {
        keys.out_offsets.push_back(layout_.keys_offset(layer, head));
        values.out_offsets.push_back(layout_.values_offset(layer, head));
    }
    return copier_.copy(staged_rows(taken.ranks, prefix(), window()), taken.ranks.lengths(window()),
                        keys, values, staging_);
}

/// What makes this layer comparable with others. A layer whose scores do not add up to more than
/// nothing has nothing to be counted by.
Result<float> PromptJob::tally_scale(TakenLayer const& taken) {
    if (spec_.params.score_norm == ScoreNorm::None || taken.pooled.empty()) return 1.0F;
    std::vector<double> sums(spec_.geometry.kv_heads);
    DKV_TRY(backend_.sum({.scores = taken.pooled.elements(),
                          .sums = sums,
                          .heads = spec_.geometry.kv_heads,
                          .tokens = prefix(),
                          .skip = spec_.params.tally_skip()}));
    DKV_TRY(backend_.synchronize());
    double const sum = std::accumulate(sums.begin(), sums.end(), 0.0);
    // 1 over less than that may be no f32; and a sum may be NaN.
    return sum >= double{std::numeric_limits<float>::min()} ? static_cast<float>(1 / sum) : 0.0F;
}

/// The tally that is due after this layer, or nothing.
Result<std::vector<std::uint64_t>> PromptJob::counts_with(std::uint32_t layer,
                                                          TakenLayer const& taken) {
    std::vector<std::uint64_t> counts;
    auto const total = policy_->tally_total(layer);
    if (!total) return counts;

    std::vector<std::span<float const>> scores;
    std::vector<float> scales;
    auto const count = [&](TakenLayer const& one) {
        scores.emplace_back(one.pooled.elements());
        scales.push_back(one.scale);
    };
    for (std::size_t seen = policy_->tally_from(layer); seen < layers_.size(); ++seen)
        count(layers_[seen]);
    count(taken);
    if (spec_.params.score_norm == ScoreNorm::None) scales.clear();
    counts.resize(scores.size() * spec_.geometry.kv_heads);
    DKV_TRY(backend_.tally({.layers = scores,
                            .counts = counts,
                            .heads = spec_.geometry.kv_heads,
                            .tokens = prefix(),
                            .total = *total,
                            .scales = scales,
                            .skip = spec_.params.tally_skip()}));
    DKV_TRY(backend_.synchronize());
    return counts;
}

/// Gives the layer its final budgets, and cuts it to them.
Result<void> PromptJob::settle(std::uint32_t layer,
                               TakenLayer& taken,
                               std::vector<std::uint64_t> const& counts) {
    if (policy_->wants_mass()) {
        if (!taken.ranks.mass_known)
            return Error{ErrorCode::Unsupported,
                         "keep_mass needs the window's attention on every token, which the "
                         "engine's scores of layer " +
                             std::to_string(layer) + " do not tell: send queries"};
        policy_->take_mass(layer, taken.ranks.mass_curves());
    }
    if (!counts.empty()) policy_->rebalance(layer + 1, counts);
    taken.ranks.trim(policy_->budgets().layer(layer));
    return {};
}

std::vector<LayerProgress> PromptJob::rebalance(std::vector<std::uint64_t> const& counts) {
    policy_->rebalance(layers_done(), counts);
    std::vector<LayerProgress> trimmed;
    for (std::uint32_t layer = 0; layer < layers_done(); ++layer)
        if (layers_[layer].ranks.trim(policy_->budgets().layer(layer)) &&
            waiting_ == Waiting::Staged)
            trimmed.push_back(progress(layer, LayerStage::Trimmed));
    return trimmed;
}

std::vector<std::uint32_t> PromptJob::lengths() const {
    std::vector<std::uint32_t> lengths;
    for (std::uint32_t layer = 0; layer < spec_.geometry.layers; ++layer)
        for (std::uint32_t const budget : policy_->budgets().layer(layer))
            lengths.push_back(window() + budget);
    return lengths;
}

Result<LayerProgress> PromptJob::pack(std::uint32_t layer) {
    if (layer < layers_packed_) return progress(layer, LayerStage::Committed);
    if (!all_taken())
        return Error{ErrorCode::BadState,
                     "layer " + std::to_string(layer) + " cannot be packed when " +
                         std::to_string(layers_.size()) + " of " +
                         std::to_string(spec_.geometry.layers) + " layers have come"};
    if (layer >= spec_.geometry.layers || layer != layers_packed_)
        return Error{ErrorCode::BadState, "layer " + std::to_string(layer) +
                                              " cannot be packed when " +
                                              std::to_string(layers_packed_) + " of " +
                                              std::to_string(spec_.geometry.layers) + " are"};

    layers_[layer].place = DKV_TRY(pack_rows(layer, layers_[layer]));
    ++layers_packed_;
    return progress(layer, LayerStage::Committed);
}

RowsView PromptJob::staged_view(std::uint64_t offset) const {
    RowsView view = dense_rows(staging_.data() + offset, spec_.geometry.dtype,
                               spec_.geometry.kv_heads, layout_.rows_max, spec_.geometry.head_dim);
    view.head_stride = layout_.segment_bytes() / bytes_of(spec_.geometry.dtype);
    return view;
}

/// After the layers that are packed already.
Result<PackedLayer> PromptJob::pack_rows(std::uint32_t layer, TakenLayer const& taken) {
    auto const lengths = taken.ranks.lengths(window());
    std::uint64_t const begin =
        layers_packed_ == 0 ? 0 : layers_[layers_packed_ - 1].place->end_offset;
    PackedLayer place = packed_layer(spec_.geometry, lengths, begin);
    DKV_ASSERT(place.end_offset <= destination_.size());

    bool const staged = waiting_ == Waiting::Staged;
    RowsMove keys{.source = staged ? staged_view(layout_.keys_offset(layer, 0)) : taken.keys,
                  .out_offsets = {}};
    RowsMove values{.source = staged ? staged_view(layout_.values_offset(layer, 0)) : taken.values,
                    .out_offsets = {}};
    for (std::uint32_t head = 0; head < spec_.geometry.kv_heads; ++head) {
        std::uint64_t const offset = place.head_rows[head] * spec_.geometry.row_bytes();
        keys.out_offsets.push_back(place.keys_offset + offset);
        values.out_offsets.push_back(place.values_offset + offset);
    }

    PackedRows const rows = packed_rows(taken.ranks, prefix(), window());
    auto const positions = std::as_bytes(std::span(rows.positions));
    DKV_TRY(
        backend_.upload(positions, destination_.subspan(place.positions_offset, positions.size())));
    DKV_TRY(
        copier_.copy(staged ? rows.slots : rows.positions, lengths, keys, values, destination_));
    return place;
}

LayerProgress PromptJob::progress(std::uint32_t layer, LayerStage stage) const {
    TakenLayer const& taken = layers_[layer];
    return {.layer = layer,
            .stage = stage,
            .lengths = taken.ranks.lengths(window()),
            .destination_offset = taken.place ? taken.place->keys_offset : 0};
}

Result<JobOutcome> PromptJob::outcome() const {
    if (layers_packed_ != spec_.geometry.layers)
        return Error{ErrorCode::BadState, std::to_string(layers_packed_) + " of " +
                                              std::to_string(spec_.geometry.layers) +
                                              " layers are packed"};
    JobOutcome outcome;
    bool mass_known = true;
    for (TakenLayer const& layer : layers_) {
        for (std::uint32_t const length : layer.ranks.lengths(window()))
            outcome.lengths.push_back(length);
        auto const mass = layer.ranks.mass_kept();
        mass_known = mass_known && mass;
        outcome.mass_kept.push_back(mass.value_or(0));
    }
    if (!mass_known) outcome.mass_kept.clear();
    outcome.bytes_full = spec_.geometry.cache_bytes(spec_.prompt_tokens);
    outcome.bytes_kept = kept_bytes(spec_.geometry, outcome.lengths);
    outcome.bytes_block_table =
        block_table_bytes(spec_.geometry, spec_.prompt_tokens, outcome.lengths);
    return outcome;
}

}  // namespace

Result<std::unique_ptr<Job>> Job::open(Backend& backend,
                                       JobSpec const& spec,
                                       std::span<std::byte> staging,
                                       std::span<std::byte> destination) {
    DKV_TRY(check(spec, staging, destination));
    auto job = std::make_unique<PromptJob>(backend, spec, make_policy(spec.params, shape_of(spec)),
                                           staging, destination);
    DKV_TRY(job->prepare());
    return std::unique_ptr<Job>(std::move(job));
}

}  // namespace dkv
