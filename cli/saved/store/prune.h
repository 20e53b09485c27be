// Folders of caches brought under a number of bytes: compacted by measured loss, deleted last.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cli/saved/offline/in_place.h"

namespace dkv::cli {

struct PruneRequest {
    std::vector<std::string> folders;
    bool recursive = false;
    std::uint64_t budget = 0;  ///< Bytes of all caches together.
    double damage_max = 0.1;   ///< A cache that would lose more stays as it is.
    bool unmeasured = false;   ///< Also compact, to a half, what has no measured loss.
    bool delete_last = false;  ///< Where compaction was not enough; compacted caches, too.
    std::chrono::milliseconds settle{5000};  ///< Files written to within that time are left alone.
    bool dry_run = false;
    bool may_be_empty = false;        ///< Also where a folder has no cache.
    offline::CompactRequest compact;  ///< Policy, without a size, and what formats do not say.
};

/// One cache that something happened to.
struct PrunedCache {
    enum class What : std::uint8_t { Compacted, Deleted, Left };
    std::filesystem::path path;
    What what = What::Left;
    std::uint64_t bytes_before = 0;
    std::uint64_t bytes_after = 0;
    double share = 1;                   ///< Of the prompt's tokens.
    std::optional<double> damage = {};  ///< docs/POLICIES.md; nothing: not known.
    std::string why = {};               ///< It was left.
};

struct PruneTotals {
    std::size_t caches = 0;
    std::uint64_t bytes_before = 0;
    std::uint64_t bytes_after = 0;
    std::size_t compacted = 0;
    std::size_t deleted = 0;
    std::size_t left = 0;      ///< Looked at, and left as they are.
    std::size_t fresh = 0;     ///< Written to within the time to settle.
    double damage_sum = 0;     ///< Of those compacted whose damage is known,
    std::size_t measured = 0;  ///< which are so many.
    double damage_worst = 0;
};

/// What passes over the same folders share: a watch.
struct PruneMemory {
    std::map<std::filesystem::path, UniqueFd> locks;  ///< By the folder's real path.
    struct Left {
        offline::FileStamp stamp;
        std::string why;
        bool tried = false;  ///< Not to be tried again before the file changes.
    };
    std::map<std::filesystem::path, Left> left;  ///< Told once.
    bool begun = false;                          ///< A pass came to its end.
};

/// The oldest first, of equal age the largest, until all are within the budget: each to the
/// smallest of a half, a quarter and an eighth of its tokens whose damage is allowed, or to the
/// largest that is enough. With delete_last then the oldest go, whether or not they were compacted
/// in this run or before. Each is replaced in one step: a run that is killed loses nothing, and
/// the next goes on with the rest. `tell` gets each cache once it is settled. The folders are
/// locked for as long as `memory` lives.
///
/// Errors: InvalidArgument for a policy with a size; those of find_inputs(), lock_folder();
/// Cancelled.
Result<PruneTotals> prune(PruneRequest const& request,
                          offline::Progress const& progress,
                          std::function<void(PrunedCache const&)> const& tell,
                          PruneMemory& memory);

}  // namespace dkv::cli
