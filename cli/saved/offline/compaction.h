// One file's compaction, step by step.
#pragma once

#include <memory>
#include <optional>

#include "cli/saved/formats/write_cache.h"
#include "cli/saved/offline/compact.h"
#include "cli/saved/offline/fit.h"
#include "sidecar/pipeline/plan.h"

namespace dkv::offline {

class Compaction {
public:
    /// All of them outlive the compaction. `threads` are for what the backend does not do.
    Compaction(Backend& backend,
               CompactRequest const& request,
               Progress const& progress,
               std::size_t file,
               unsigned threads)
        : backend_(backend),
          request_(request),
          progress_(progress),
          file_(file),
          threads_(threads) {}

    Result<CompactOutcome> run();

private:
    CacheFacts const& facts() const noexcept { return cache_->facts(); }
    JobSpec spec_of(PolicyParams const& params) const;
    Alike alike() const noexcept;

    Result<void> check_output() const;
    Result<void> open();
    Result<void> check_certified(Certified const& certified) const;
    Result<void> resolve_policy();
    Result<void> count_in_bytes();
    void note_bits(std::uint32_t asked);
    Result<void> refine_into(std::uint64_t bytes);
    Result<void> describe();
    Result<bool> is_there();
    Result<void> decide();
    Result<void> decide_once(PolicyParams const& params, unsigned verify_threads);
    Result<void> rank_every_token();
    Result<void> decide_to_fill(std::uint64_t bytes);
    Result<void> check_known_lengths(Policy const& policy) const;
    Result<void> verify_whole();
    Result<void> write();
    Result<RowsToWrite> rows_of(std::uint32_t layer);
    std::vector<std::int32_t> rows_to_refine(std::uint32_t layer,
                                             std::span<std::int32_t const> kept) const;
    WriteRequest writing(std::vector<std::uint32_t> lengths) const;
    std::uint64_t bytes_written(std::vector<std::uint32_t> const& lengths) const;
    std::uint64_t written_row_bytes() const;
    double refined_share(std::vector<std::uint32_t> const& lengths) const;
    Result<std::uint64_t> size_of(std::vector<std::uint32_t> const& lengths) const;
    void note(std::string text) { outcome_.notes.push_back(std::move(text)); }
    void add_notes(Filled const& filled);

    Backend& backend_;
    CompactRequest const& request_;
    Progress const& progress_;
    std::size_t const file_;
    unsigned const threads_;

    std::unique_ptr<SavedCache> cache_;
    FileFormat to_ = FileFormat::Dkv;
    PolicyParams params_;                 // As used.
    std::optional<std::uint64_t> bytes_;  // The file's size that was asked for.
    std::map<std::string, std::string> provenance_;
    std::optional<Ranker> ranker_;
    std::optional<Plan> plan_;  // Nothing: the prompt is kept whole.
    double refined_share_ = 0;  // Of every head's rows, where no token is missing.
    bool ranks_alone_ = false;  // The plan says what is refined; every token is kept.
    Filled filled_;
    CompactOutcome outcome_;
};

}  // namespace dkv::offline
