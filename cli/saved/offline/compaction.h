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
    Result<void> describe();
    Result<bool> is_there();
    Result<void> decide();
    Result<void> decide_once(unsigned verify_threads);
    Result<void> decide_to_fill(std::uint64_t bytes);
    Result<void> check_known_lengths(Policy const& policy) const;
    Result<void> verify_whole();
    Result<void> write();
    Result<RowsToWrite> rows_of(std::uint32_t layer);
    WriteRequest writing(std::vector<std::uint32_t> lengths) const;
    std::uint64_t bytes_written(std::vector<std::uint32_t> const& lengths) const;
    std::uint64_t written_row_bytes() const;
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
    Filled filled_;
    CompactOutcome outcome_;
};

}  // namespace dkv::offline
