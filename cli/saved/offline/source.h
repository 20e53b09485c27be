// A saved cache as plans see it.
#pragma once

#include "cli/saved/formats/saved_cache.h"
#include "sidecar/pipeline/plan.h"

namespace dkv::offline {

/// With every query that there is.
LayerSource source_of(CacheFacts const& facts, SavedLayer const& layer);

/// Errors: InvalidArgument, naming how many there are: "NAME needs the queries of the last 32
/// tokens, and the file has 8".
Result<void> check_queries(CacheFacts const& facts, std::string const& name, std::uint32_t wanted);

/// How many of the last queries a policy cannot do without.
std::uint32_t queries_needed(CacheFacts const& facts, PolicyParams const& params, Ranking ranking);

/// check_queries() of those that are needed, saying what can be done.
Result<void> check_queries_needed(CacheFacts const& facts,
                                  PolicyParams const& params,
                                  Ranking ranking);

/// Rows of the file that a plan keeps of a layer: positions, [Σ lengths].
std::vector<std::int32_t> kept_rows(Plan const& plan, std::uint32_t layer);

}  // namespace dkv::offline
