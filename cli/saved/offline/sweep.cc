#include "cli/saved/offline/sweep.h"

#include <algorithm>
#include <optional>

#include "cli/saved/offline/attention_error.h"
#include "cli/saved/offline/damage.h"
#include "cli/saved/offline/profiles.h"
#include "cli/saved/offline/source.h"
#include "cli/saved/offline/walk.h"
#include "sidecar/pipeline/savings.h"
#include "sidecar/pipeline/spec.h"

namespace dkv::offline {
namespace {

// A file with every query (h2o) has more than tell anything new.
constexpr std::uint32_t kErrorQueriesMax = 128;

class Sweep {
public:
    Sweep(Backend& backend,
          SavedCache const& file,
          std::span<PolicyRequest const> points,
          Progress const& progress)
        : backend_(backend),
          file_(file),
          progress_(progress),
          ranker_(backend, file.geometry(), file.facts().prompt_tokens),
          rows_(points.size()) {}

    Result<std::vector<SweepRow>> run(std::span<PolicyRequest const> points, bool with_error) {
        for (std::size_t i = 0; i < points.size(); ++i) {
            auto const added = add(i, points[i]);
            if (!added) rows_[i].error = added.error().message;
        }
        with_error = with_error && facts().query_rows > 0;
        damage_ = DKV_TRY(Damage::create(backend_, facts(), judging_profile()));
        WalkOptions options{.verify_threads = 0,
                            .progress = &progress_,
                            .file = 0,
                            .bytes_begin = 0,
                            .bytes_end = facts().file_bytes / (with_error ? 2 : 1),
                            .bytes_total = facts().file_bytes};
        if (!plans_.empty())
            DKV_TRY(walk(file_, options, ranker_, plans_,
                         [this](std::uint32_t, SavedLayer const& layer) {
                             return damage_ ? damage_->take(layer) : Result<void>();
                         }));
        for (std::size_t i = 0; i < plans_.size(); ++i)
            settle(rows_[row_of_plan_[i]], plans_[i]);
        if (with_error) {
            options.bytes_begin = options.bytes_end;
            options.bytes_end = facts().file_bytes;
            DKV_TRY(walk(file_, options, [this](std::uint32_t index, SavedLayer const& layer) {
                return measure(index, layer);
            }));
        }
        return std::move(rows_);
    }

private:
    CacheFacts const& facts() const noexcept { return file_.facts(); }

    std::shared_ptr<Profile> own_profile() {
        if (!own_profile_) own_profile_ = offline::own_profile(facts());
        return *own_profile_;
    }

    std::shared_ptr<Profile const> judging_profile() {
        if (auto const own = own_profile()) return own;
        return a_profile_;
    }

    /// A plan for the point, unless the prompt is kept whole.
    Result<void> add(std::size_t index, PolicyRequest const& point) {
        SweepRow& row = rows_[index];
        PolicyRequest wish = point;
        if (!wish.profile && takes_own_profile(wish.name)) wish.profile = own_profile();
        if (wish.profile && !a_profile_) a_profile_ = wish.profile;
        row.params = DKV_TRY(sized_for(DKV_TRY(resolve(wish, facts().model)), facts()));
        row.bytes_full = file_.geometry().cache_bytes(facts().prompt_tokens);
        JobSpec const spec{.geometry = file_.geometry(),
                           .prompt_tokens = facts().prompt_tokens,
                           .params = row.params,
                           .progressive = false};
        auto const policy = make_policy(row.params, shape_of(spec));
        if (policy == nullptr) {
            row.lengths.assign(facts().lengths.size(), facts().prompt_tokens);
            row.damage.assign(file_.geometry().layers, 0.0);
            row.mass_kept.assign(file_.geometry().layers, 1.0F);
            if (facts().query_rows > 0) row.error_l2.assign(file_.geometry().layers, 0.0);
            row.bytes_kept = row.bytes_full;
            return {};
        }
        DKV_TRY(check_queries_needed(facts(), row.params, policy->ranking()));
        plans_.push_back(DKV_TRY(Plan::create(backend_, spec, ranker_)));
        row_of_plan_.push_back(index);
        return {};
    }

    void settle(SweepRow& row, Plan const& plan) const {
        row.lengths = plan.kept_lengths();
        if (damage_) row.damage = damage_->of(plan);
        row.mass_kept = plan.mass_kept();
        row.bytes_kept = kept_bytes(file_.geometry(), row.lengths);
    }

    Result<void> measure(std::uint32_t index, SavedLayer const& layer) {
        std::vector<KeptTokens> kept;
        for (Plan const& plan : plans_)
            kept.push_back({.rows = kept_rows(plan, index),
                            .lengths = plan.layer(index).lengths(plan.spec().params.window)});
        RowsView queries = layer.queries;
        std::uint32_t const count = std::min(queries.tokens, kErrorQueriesMax);
        queries.data = queries.row(0, queries.tokens - count);
        queries.tokens = count;
        auto const errors = DKV_TRY(attention_error({.queries = queries,
                                                     .keys = layer.keys,
                                                     .values = layer.values,
                                                     .kept = kept,
                                                     .scale = facts().scale,
                                                     .softcap = facts().softcap,
                                                     .sink_logits = layer.sink_logits}));
        for (std::size_t i = 0; i < plans_.size(); ++i)
            rows_[row_of_plan_[i]].error_l2.push_back(errors[i]);
        return {};
    }

    Backend& backend_;
    SavedCache const& file_;
    Progress const& progress_;
    Ranker ranker_;
    std::vector<Plan> plans_;
    std::vector<std::size_t> row_of_plan_;
    std::vector<SweepRow> rows_;
    std::optional<std::shared_ptr<Profile>> own_profile_;  // Looked for once, for all points.
    std::shared_ptr<Profile const> a_profile_;             // That a point was asked with.
    std::optional<Damage> damage_;
};

}  // namespace

Result<std::vector<SweepRow>> sweep(Backend& backend,
                                    SavedCache const& file,
                                    std::span<PolicyRequest const> points,
                                    bool with_error,
                                    Progress const& progress) {
    if (!file.facts().is_whole())
        return Error{ErrorCode::Unsupported,
                     "tokens are missing already: a sweep needs the whole cache"};
    return Sweep(backend, file, points, progress).run(points, with_error);
}

}  // namespace dkv::offline
