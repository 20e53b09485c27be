// What follows from a JobSpec alone.
#pragma once

#include <span>
#include <vector>

#include "sidecar/pipeline/job.h"

namespace dkv {

PromptShape shape_of(JobSpec const& spec);

/// Prefix tokens of each head when its budget is rounded up as the spec says. [kv_heads]
std::vector<std::uint32_t> rounded(JobSpec const& spec, std::span<std::uint32_t const> budgets);

/// Rows of queries to ask the engine for with each layer. What ranks by position asks for the
/// window's, so that the attention kept is known; what ranks by keys is for those who
/// have none.
std::uint32_t queries_wanted(JobSpec const& spec, Ranking ranking);

/// How a layer waits for its final budget.
enum class Waiting : std::uint8_t {
    NotAtAll,  ///< Its budget is known: it is packed at once.
    Staged,    ///< Its best rows are copied to the staging region.
    InSource   ///< The engine keeps it whole.
};
Waiting waiting_of(JobSpec const& spec, Policy const& policy);

/// rows_max is 0 unless layers wait staged.
StagingLayout staging_layout(JobSpec const& spec, Policy const& policy);

/// What its backend is asked for, at most: the ops, and the buffers of a Ranker and of a RowCopier.
PromptSizes sizes_of(JobSpec const& spec, Policy const& policy);

/// Errors: InvalidArgument when the geometry is impossible, token ids do not fit in 32 bits or
/// offsets in 64, a region is smaller than needs_of() says, or the two overlap.
Result<void> check(JobSpec const& spec,
                   std::span<std::byte const> staging,
                   std::span<std::byte const> destination);

}  // namespace dkv
