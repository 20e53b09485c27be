// Folders of saved caches, and what became of them.
#pragma once

#include <string>
#include <vector>

#include "cli/render/json.h"
#include "cli/render/style.h"
#include "cli/saved/store/prune.h"
#include "cli/saved/store/store.h"

namespace dkv::cli {

/// A line for each cache, and a total. `now_ns` makes ages of times.
std::string store_text(std::vector<StoredCache> const& caches,
                       std::int64_t now_ns,
                       Style const& style);
Json to_json(StoredCache const& cache);

/// A line.
std::string pruned_text(PrunedCache const& cache, bool dry_run, Style const& style);
Json to_json(PrunedCache const& cache);

/// A line: what all of it came to.
std::string prune_total_text(PruneTotals const& totals,
                             std::uint64_t budget,
                             bool dry_run,
                             Style const& style);
Json to_json(PruneTotals const& totals);

}  // namespace dkv::cli
