// Once through a file, layer by layer.
#pragma once

#include <functional>
#include <span>

#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/offline/progress.h"
#include "sidecar/pipeline/plan.h"

namespace dkv::offline {

struct WalkOptions {
    /// Threads that check every byte of the layers meanwhile; 0: nothing is checked.
    unsigned verify_threads = 0;
    Progress const* progress = nullptr;
    std::size_t file = 0;           ///< As progress calls it.
    std::uint64_t bytes_begin = 0;  ///< Of `bytes_total` to report when the walk begins,
    std::uint64_t bytes_end = 0;    ///< and when it ends.
    std::uint64_t bytes_total = 0;
};

/// What is done with a layer, in order.
using OnLayer = std::function<Result<void>(std::uint32_t index, SavedLayer const& layer)>;

/// Pages of a large file that a layer was read from are dropped from memory before the next but a
/// few is read.
///
/// Errors: those of the file and of `each`; CorruptData where a layer, or its queries, are not what
/// their checksums say or not finite; Io where the file changed meanwhile; interrupted().
Result<void> walk(SavedCache const& file, WalkOptions const& options, OnLayer const& each);

/// Every plan over the file, each layer scored once for all that score alike. The file is whole,
/// and has the queries that the plans want. `also` is done with each layer, too.
Result<void> walk(SavedCache const& file,
                  WalkOptions const& options,
                  Ranker& ranker,
                  std::span<Plan> plans,
                  OnLayer const& also = {});

}  // namespace dkv::offline
