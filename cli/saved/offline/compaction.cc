#include "cli/saved/offline/compaction.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "cli/saved/offline/conversion_notes.h"
#include "cli/saved/offline/pages.h"
#include "cli/saved/offline/profiles.h"
#include "cli/saved/offline/provenance.h"
#include "cli/saved/offline/refined.h"
#include "cli/saved/offline/source.h"
#include "cli/saved/offline/walk.h"
#include "protocol/base/version.h"
#include "protocol/container/quantised_rows.h"
#include "sidecar/pipeline/savings.h"
#include "sidecar/pipeline/spec.h"

namespace dkv::offline {
namespace {

namespace fs = std::filesystem;

constexpr double kReadShare = 0.9;  // Of the progress; the rest is writing.

/// Between one that fits and one that does not, by what share of the last one's size is wanted.
std::uint32_t next_capacity(double share,
                            std::uint32_t capacity,
                            std::uint32_t fits,
                            std::uint32_t too_many) {
    if (too_many - fits <= 1) return fits;
    auto const wanted = static_cast<std::uint32_t>(share * capacity);
    // Never one step at a time: each is a walk through the file.
    std::uint32_t const middle = fits + (too_many - fits) / 2;
    return wanted > fits && wanted < too_many ? wanted : middle;
}

std::uint64_t sum_of(std::vector<std::uint32_t> const& lengths) {
    return std::accumulate(lengths.begin(), lengths.end(), std::uint64_t{0});
}

bool lies_in(fs::path const& path, fs::path const& folder) {
    std::error_code ignored;
    if (!fs::is_directory(folder, ignored)) return false;
    auto const inner = fs::weakly_canonical(path, ignored);
    auto const outer = fs::weakly_canonical(folder, ignored);
    return std::ranges::mismatch(outer, inner).in1 == outer.end();
}

}  // namespace

Result<CompactOutcome> Compaction::run() {
    auto const begin = std::chrono::steady_clock::now();
    outcome_.input = request_.input;
    outcome_.output = request_.output;
    DKV_TRY(check_output());
    DKV_TRY(open());
    DKV_TRY(resolve_policy());
    DKV_TRY(describe());
    if (!DKV_TRY(is_there())) {
        DKV_TRY(decide());
        DKV_TRY(write());
        progress_.report(file_, facts().file_bytes, facts().file_bytes);
    }
    outcome_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return std::move(outcome_);
}

Result<void> Compaction::check_output() const {
    std::error_code ignored;
    if (fs::equivalent(request_.input, request_.output, ignored))
        return Error{ErrorCode::Unsupported,
                     request_.output.string() + ": the output is the input, which stays as it is"};
    if (lies_in(request_.output, request_.input))
        return Error{ErrorCode::Unsupported,
                     request_.output.string() +
                         ": the output lies in the input's folder, which stays as it is"};
    return {};
}

Result<void> Compaction::open() {
    cache_ = DKV_TRY(open_cache(request_.input, request_.open));
    if (!facts().is_whole())
        return Error{ErrorCode::Unsupported,
                     "tokens are missing from it already: compact the "
                     "cache that it was made of"};
    to_ = request_.format ? *request_.format
                          : (is_writable(facts().format) ? facts().format : FileFormat::Dkv);
    if (!is_writable(to_))
        return Error{ErrorCode::Unsupported,
                     fmt::format("{} is read and not written: choose dkv, hf, llama-state, "
                                 "llama-slot, mlx-lm or mlx-lm@0.31",
                                 name_of(to_))};
    DKV_TRY(check_bits(request_.bits, to_, facts().geometry.head_dim));
    outcome_.from = facts().format;
    outcome_.to = to_;
    outcome_.bits = request_.bits;
    outcome_.geometry = facts().geometry;
    outcome_.model = facts().model;
    outcome_.prompt_tokens = facts().prompt_tokens;
    outcome_.rows_bytes_before = facts().rows_bytes();
    outcome_.file_bytes_before = facts().file_bytes;
    if (request_.verify && !facts().has_checksums)
        note("the input has no checksums: all that was verified is that its numbers are finite");
    return {};
}

JobSpec Compaction::spec_of(PolicyParams const& params) const {
    return {.geometry = facts().geometry,
            .prompt_tokens = facts().prompt_tokens,
            .params = params,
            .progressive = false};
}

Result<void> Compaction::check_certified(Certified const& certified) const {
    auto const& name = certified.name;
    if (request_.bits != RowBits::Own)
        return Error{ErrorCode::Unsupported,
                     fmt::format("'{}' is of rows as the model makes them: leave --bits out, or "
                                 "give a size",
                                 name)};
    if (auto const weights = weights_of(facts()); weights.empty() || weights != certified.weights)
        return Error{ErrorCode::InvalidArgument,
                     weights.empty()
                         ? fmt::format("the file does not say which weights made it, and '{}' is "
                                       "of weights {}: give a size",
                                       name, certified.weights)
                         : fmt::format("the file is of weights {}, and '{}' of {}: give a size",
                                       weights, name, certified.weights)};
    auto const tokens = facts().prompt_tokens;
    if (tokens < certified.tokens_min || tokens > certified.tokens_max)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("the prompt has {} tokens, and '{}' is of prompts of {} to {}: "
                                 "give a size",
                                 tokens, name, certified.tokens_min, certified.tokens_max)};
    if (is_llama(to_))
        return Error{ErrorCode::Unsupported,
                     fmt::format("llama.cpp has one number of tokens for all layers and heads, "
                                 "and '{}' is of the policy's own: give a size",
                                 name)};
    return {};
}

Result<void> Compaction::resolve_policy() {
    if (request_.certified) DKV_TRY(check_certified(*request_.certified));
    PolicyRequest wish = request_.policy;
    if (wish.name.empty()) wish.name = "auto";
    wish = with_own_profile(std::move(wish), facts());
    if (is_llama(to_) && !request_.fill && wish.profile && !wish.profile_alpha) {
        wish.profile_alpha = 0;
        note(
            "llama.cpp has one number of tokens for all layers and heads: the profile's budgets "
            "were made alike (--profile-alpha 0)");
    }
    params_ = DKV_TRY(resolve(wish, facts().model));
    bytes_ = std::exchange(params_.bytes, std::nullopt);
    params_ = DKV_TRY(sized_for(params_, facts()));
    return count_in_bytes();
}

/// With fewer bits a capacity is bytes, and more tokens fit in them.
Result<void> Compaction::count_in_bytes() {
    if (request_.bits == RowBits::Own) return {};
    if (request_.bits == RowBits::Mixed) {
        if (params_.name == "fullkv")
            return Error{ErrorCode::InvalidArgument,
                         "fullkv ranks no tokens, and mixed bits are more for the best: --bits 8 "
                         "or 4"};
        refined_share_ = kRefinedShare;
    }
    if (bytes_ || params_.keep_mass) return {};
    auto const bytes = static_cast<std::uint64_t>(static_cast<double>(params_.capacity) *
                                                  static_cast<double>(facts().rows_bytes()) /
                                                  static_cast<double>(sum_of(facts().lengths)));
    auto fit = bytes / written_row_bytes();
    if (request_.bits == RowBits::Mixed) {
        double const tokens = facts().prompt_tokens;
        double const rows = static_cast<double>(bytes) / static_cast<double>(written_row_bytes());
        double const kept = kept_in_bytes_of(rows / tokens);
        // A prompt that fits may be shorter than the window.
        fit = kept < 1 ? static_cast<std::uint64_t>(kept * tokens)
                       : std::max(facts().prompt_tokens, params_.window);
        refined_share_ = std::clamp(rows / tokens - 1, kRefinedShare, 1.0);
    }
    if (fit < params_.window)
        return Error{
            ErrorCode::InvalidArgument,
            fmt::format("capacity is {}, whose bytes in the input are those of {} tokens of "
                        "{} bits, fewer than the window of {}",
                        params_.capacity, fit, name_of(request_.bits), params_.window)};
    auto const asked = std::exchange(
        params_.capacity,
        static_cast<std::uint32_t>(std::min<std::uint64_t>(fit, facts().prompt_tokens)));
    if (params_.name != "fullkv") note_bits(asked);
    return {};
}

void Compaction::note_bits(std::uint32_t asked) {
    auto const bits = name_of(request_.bits);
    bool const all = params_.capacity >= facts().prompt_tokens;
    if (all && request_.bits == RowBits::Mixed)
        note(fmt::format("with {} bits every token fits; {:.0f} % of each head's, the best, have 8",
                         bits, 100 * refined_share_));
    else if (!all)
        note(fmt::format("with {} bits {} tokens per head have the bytes of {} in the input", bits,
                         params_.capacity, asked));
}

/// Where every token fits into the file, what is left refines more of them.
Result<void> Compaction::refine_into(std::uint64_t bytes) {
    if (params_.capacity < facts().prompt_tokens) return {};
    double fits = refined_share_;
    double too_many = 1 + 1.0 / facts().prompt_tokens;
    while (too_many - fits > 0.5 / facts().prompt_tokens) {
        refined_share_ = std::min((fits + too_many) / 2, 1.0);
        (DKV_TRY(size_of(facts().lengths)) <= bytes ? fits : too_many) = (fits + too_many) / 2;
    }
    refined_share_ = std::min(fits, 1.0);
    note_bits(params_.capacity);
    return {};
}

/// What the output will say of itself, but for the lengths.
Result<void> Compaction::describe() {
    provenance_ = facts().provenance;
    PolicyParams asked = params_;
    asked.bytes = bytes_;
    describe_policy(asked, provenance_);
    auto const print = DKV_TRY(source_print(request_.input));
    auto name = request_.input.filename();
    if (name.empty()) name = request_.input.parent_path().filename();
    provenance_["source"] = name.string();
    provenance_["source_format"] = std::string(name_of(facts().format));
    provenance_["source_bytes"] = std::to_string(print.bytes);
    provenance_["source_crc32"] = fmt::format("{:08x}", print.crc);
    provenance_["dkv"] = kVersion;
    if (request_.fill) provenance_["fill"] = "on";
    if (request_.bits != RowBits::Own) provenance_["bits"] = name_of(request_.bits);
    if (bytes_)
        params_ = DKV_TRY(capacity_for_bytes(
            *bytes_, params_, facts().geometry, facts().prompt_tokens, alike() != Alike::Nothing,
            [this](std::vector<std::uint32_t> const& lengths) { return size_of(lengths); }));
    if (bytes_) params_ = DKV_TRY(sized(params_, facts().geometry, facts().prompt_tokens));
    if (bytes_ && request_.bits == RowBits::Mixed) DKV_TRY(refine_into(*bytes_));
    // Where every token fits, requests of unlike sizes differ in nothing else.
    if (request_.bits == RowBits::Mixed)
        provenance_["refined"] = fmt::format("{:.6f}", refined_share_);
    outcome_.params = params_;
    return {};
}

/// Whether the output was made of this very request.
///
/// Errors: AlreadyExists when it was not.
Result<bool> Compaction::is_there() {
    std::error_code ignored;
    if (request_.force || !fs::exists(request_.output, ignored)) return false;
    auto const made = open_cache(request_.output);
    bool same = made && made.value()->facts().format == to_ &&
                made.value()->facts().provenance == provenance_;
    if (same && to_ == FileFormat::Dkv)
        same = made.value()->facts().query_rows == writing({}).facts.query_rows;
    if (!same)
        return Error{ErrorCode::AlreadyExists, request_.output.string() +
                                                   ": there is a file of this name already, and it "
                                                   "does not say that it was made of this request; "
                                                   "--force writes over it"};
    outcome_.already_there = true;
    outcome_.kept_whole = !made.value()->facts().compacted;
    outcome_.lengths = made.value()->facts().lengths;
    outcome_.rows_bytes_after = bytes_written(outcome_.lengths);
    outcome_.file_bytes_after = made.value()->facts().file_bytes;
    return true;
}

Alike Compaction::alike() const noexcept {
    if (!request_.fill) return Alike::Nothing;
    if (is_llama(to_)) return Alike::Everything;
    return to_ == FileFormat::Dkv ? Alike::Nothing : Alike::HeadsOfALayer;
}

Result<void> Compaction::decide() {
    auto const policy = make_policy(params_, shape_of(spec_of(params_)));
    if (policy == nullptr) {
        outcome_.kept_whole = true;
        outcome_.lengths = facts().lengths;
        outcome_.mass_kept.assign(facts().geometry.layers, 1.0F);
        return request_.bits == RowBits::Mixed ? rank_every_token() : verify_whole();
    }
    DKV_TRY(check_queries_needed(facts(), params_, policy->ranking()));
    DKV_TRY(check_known_lengths(*policy));
    DKV_TRY(decide_once(params_, request_.verify ? threads_ : 0));
    if (bytes_ && alike() != Alike::Nothing && filled_.shortest != filled_.longest)
        DKV_TRY(decide_to_fill(*bytes_));
    if (bytes_)
        DKV_TRY(
            fit(*plan_, *bytes_, is_llama(to_),
                [this](std::vector<std::uint32_t> const& lengths) { return size_of(lengths); }));
    outcome_.params = params_;
    outcome_.lengths = plan_->kept_lengths();
    outcome_.mass_kept = plan_->mass_kept();
    add_notes(filled_);
    return {};
}

/// A format that cannot hold what will be kept says so before anything is read.
Result<void> Compaction::check_known_lengths(Policy const& policy) const {
    if (!policy.budgets_known() || alike() != Alike::Nothing) return {};
    std::vector<std::uint32_t> lengths;
    for (std::uint32_t layer = 0; layer < facts().geometry.layers; ++layer)
        for (std::uint32_t const budget : policy.budgets().layer(layer))
            lengths.push_back(params_.window + budget);
    DKV_TRY(size_of(lengths));
    return {};
}

/// No token is dropped, and the policy's ranks say which rows are refined.
Result<void> Compaction::rank_every_token() {
    PolicyParams params = params_;
    params.keep_mass.reset();
    params.capacity = facts().prompt_tokens - 1;
    if (params.capacity <= params.window) return verify_whole();
    params = DKV_TRY(sized(params, facts().geometry, facts().prompt_tokens));
    auto const policy = make_policy(params, shape_of(spec_of(params)));
    DKV_TRY(check_queries_needed(facts(), params, policy->ranking()));
    ranks_alone_ = true;
    return decide_once(params, request_.verify ? threads_ : 0);
}

Result<void> Compaction::decide_once(PolicyParams const& params, unsigned verify_threads) {
    JobSpec const spec = spec_of(params);
    auto const policy = make_policy(params, shape_of(spec));
    std::uint32_t spare = bytes_ ? 1 : 0;
    if (alike() != Alike::Nothing) spare += spare_to_fill(*policy, spec.geometry.layers);
    plan_.reset();
    ranker_.emplace(backend_, spec.geometry, spec.prompt_tokens);
    plan_ = DKV_TRY(Plan::create(backend_, spec, *ranker_, spare));
    auto const bytes =
        static_cast<std::uint64_t>(kReadShare * static_cast<double>(facts().file_bytes));
    WalkOptions const options{.verify_threads = verify_threads,
                              .progress = &progress_,
                              .file = file_,
                              .bytes_begin = 0,
                              .bytes_end = bytes,
                              .bytes_total = facts().file_bytes};
    // The mass alone would cost more than all the rest: `dkv sweep` tells it.
    bool const with_queries = queries_needed(facts(), params, policy->ranking()) > 0;
    DKV_TRY(
        walk(*cache_, options, [&](std::uint32_t index, SavedLayer const& layer) -> Result<void> {
            LayerSource source = source_of(facts(), layer);
            if (!with_queries) source.queries = {};
            if (policy->ranking() != Ranking::Given) source.scores = {};
            ranker_->take(source);
            plan_->take(DKV_TRY(plan_->weigh(index, *ranker_)));
            return {};
        }));
    ranker_.reset();
    filled_ = fill(*plan_, alike());
    return {};
}

/// What is filled up is larger than its capacity says: by how much shows only once it is filled.
Result<void> Compaction::decide_to_fill(std::uint64_t bytes) {
    std::uint32_t fits = params_.window;
    std::uint32_t too_many = params_.capacity + 1;
    for (;;) {
        auto const size = DKV_TRY(size_of(plan_->kept_lengths()));
        (size <= bytes ? fits : too_many) = params_.capacity;
        bool const near = size <= bytes && size >= bytes - bytes / 64;
        if (near || (size <= bytes && too_many - fits <= 1) || params_.capacity == params_.window)
            return {};
        params_.capacity = next_capacity(static_cast<double>(bytes) / static_cast<double>(size),
                                         params_.capacity, fits, too_many);
        params_ = DKV_TRY(sized(params_, facts().geometry, facts().prompt_tokens));
        DKV_TRY(decide_once(params_, 0));
    }
}

Result<void> Compaction::verify_whole() {
    if (!request_.verify) return {};
    WalkOptions const options{.verify_threads = threads_, .progress = &progress_, .file = file_};
    return walk(*cache_, options, [](std::uint32_t, SavedLayer const&) { return Result<void>(); });
}

WriteRequest Compaction::writing(std::vector<std::uint32_t> lengths) const {
    WriteRequest request{.path = request_.output,
                         .like = request_.input,
                         .links = request_.links,
                         .format = to_,
                         .facts = facts(),
                         .key_order = request_.key_order,
                         .bits = request_.bits,
                         .layer = {},
                         .before_commit = [this] { return cache_->check_unchanged(); },
                         .source = is_llama(facts().format) ? cache_.get() : nullptr};
    request.facts.compacted = std::ranges::any_of(
        lengths, [this](std::uint32_t length) { return length != facts().prompt_tokens; });
    if (request_.bits == RowBits::Mixed && !lengths.empty())
        request.refined = refined_counts(refined_share(lengths), lengths, facts().geometry.layers);
    request.facts.lengths = std::move(lengths);
    request.facts.provenance = provenance_;
    if (!request_.keep_queries) request.facts.query_rows = 0;
    // They are of every token.
    request.facts.has_scores = facts().has_scores && !request.facts.compacted;
    return request;
}

/// K and V, as the output has them.
std::uint64_t Compaction::bytes_written(std::vector<std::uint32_t> const& lengths) const {
    auto rows = sum_of(lengths);
    if (request_.bits == RowBits::Mixed)
        rows += sum_of(refined_counts(refined_share(lengths), lengths, facts().geometry.layers));
    return rows * written_row_bytes();
}

double Compaction::refined_share(std::vector<std::uint32_t> const& lengths) const {
    auto const all = lengths.size() * std::uint64_t{facts().prompt_tokens};
    auto const kept = sum_of(lengths);
    if (kept == all) return refined_share_;
    return kRefinedShare * static_cast<double>(kept) / static_cast<double>(all);
}

/// K and V of one token in one head, unless they are refined: that costs the same again.
std::uint64_t Compaction::written_row_bytes() const {
    if (request_.bits != RowBits::Own) {
        auto const rows = quantised_rows(request_.bits, facts().geometry.head_dim);
        DKV_ASSERT(rows);  // open() has seen to it.
        return 2 * rows.value().row_bytes();
    }
    bool const moved = is_llama(to_) && is_llama(facts().format);
    return moved ? facts().stored_bytes() : 2 * facts().geometry.row_bytes();
}

Result<std::uint64_t> Compaction::size_of(std::vector<std::uint32_t> const& lengths) const {
    return written_bytes(writing(lengths));
}

Result<void> Compaction::write() {
    outcome_.rows_bytes_after = bytes_written(outcome_.lengths);
    outcome_.file_bytes_after = DKV_TRY(size_of(outcome_.lengths));
    WriteRequest request = writing(outcome_.lengths);
    for (auto& text : conversion_notes(request, facts().format, request.facts.compacted))
        note(std::move(text));
    if (request_.dry_run) return {};
    request.layer = [this](std::uint32_t layer) { return rows_of(layer); };
    outcome_.file_bytes_after = DKV_TRY(write_cache(backend_, request));
    return {};
}

Result<RowsToWrite> Compaction::rows_of(std::uint32_t layer) {
    if (progress_.stopped()) return interrupted();
    if (layer > 0 && !cache_->mapped().empty())
        drop_pages(*cache_, DKV_TRY(cache_->layer(layer - 1)));
    RowsToWrite rows{.source = DKV_TRY(cache_->layer(layer)), .rows = {}};
    if (plan_ && !ranks_alone_) rows.rows = kept_rows(*plan_, layer);
    if (request_.bits == RowBits::Mixed) rows.refined = rows_to_refine(layer, rows.rows);
    return rows;
}

/// `kept`: positions, head after head; empty: every token of each.
std::vector<std::int32_t> Compaction::rows_to_refine(std::uint32_t layer,
                                                     std::span<std::int32_t const> kept) const {
    std::vector<std::int32_t> every(facts().prompt_tokens);
    std::iota(every.begin(), every.end(), 0);
    std::vector<HeadToRefine> heads;
    for (std::uint32_t head = 0; head < facts().geometry.kv_heads; ++head) {
        HeadToRefine one{.positions = every, .ranked = {}};
        if (plan_) one.ranked = plan_->layer(layer).heads[head].ids;
        if (!kept.empty()) {
            one.positions = kept.first(params_.window + one.ranked.size());
            kept = kept.subspan(one.positions.size());
        }
        heads.push_back(one);
    }
    return refined_rows(refined_share(outcome_.lengths), heads);
}

void Compaction::add_notes(Filled const& filled) {
    if (alike() != Alike::Nothing && filled.shortest != filled.longest)
        note(fmt::format("budgets of {} … {} were filled up with the next best tokens",
                         filled.shortest, filled.longest));
    if (is_mlx_lm(to_))
        note("keys were turned to positions 0 … of their own layer: mlx-lm knows no others");
}

}  // namespace dkv::offline
