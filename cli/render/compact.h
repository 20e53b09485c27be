// What became of caches that were compacted or converted.
#pragma once

#include <string>
#include <vector>

#include "cli/render/json.h"
#include "cli/render/style.h"
#include "cli/saved/offline/compact.h"

namespace dkv::cli {

/// A line, and one below it for each note.
std::string compact_text(offline::CompactOutcome const& outcome, bool dry_run, Style const& style);
Json to_json(offline::CompactOutcome const& outcome);

/// Of several files: how many, bytes before and after.
struct CompactTotal {
    std::size_t files = 0;
    std::size_t done = 0;  ///< Written now.
    std::size_t already_there = 0;
    std::size_t failed = 0;
    std::uint64_t bytes_before = 0;  ///< Of the files that did not fail.
    std::uint64_t bytes_after = 0;
    double seconds = 0;

    void add(offline::CompactOutcome const& outcome);
};
std::string total_text(CompactTotal const& total, bool dry_run, Style const& style);
Json to_json(CompactTotal const& total);

}  // namespace dkv::cli
