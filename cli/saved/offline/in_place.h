// A cache replaced by its compacted form under the same name: in one step, or not at all.
#pragma once

#include <cstdint>
#include <filesystem>

#include "cli/saved/offline/compact.h"
#include "protocol/base/unique_fd.h"

namespace dkv::offline {

/// Which contents a path has, as far as that shows without reading.
struct FileStamp {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    std::uint64_t bytes = 0;
    std::int64_t written_ns = 0;
    bool operator==(FileStamp const&) const = default;
};

/// The time that stamps are of.
std::int64_t now_ns();

/// Of the path itself, not of what a link leads to. Errors: Io.
Result<FileStamp> stamp_of(std::filesystem::path const& path);

/// One program at a time replaces files in a folder.
///
/// Errors: NotFound; Io; AlreadyExists when another program has it.
Result<UniqueFd> lock_folder(std::filesystem::path const& folder);

/// Of a program that was killed: whatever it was, the cache's own name has a whole file. The caller
/// has the folder's lock.
void remove_leftovers(std::filesystem::path const& folder);

/// Compacts `request.input` and, once the result is on the disk and was read back, gives it the
/// input's name, owner, mode and time. `request.output` is not looked at; under dry_run nothing is
/// written.
///
/// Errors: those of compact(); BadState when nothing would become smaller, and when the file is not
/// as in `stamp` any more: another program wrote to it, and it stays as that program left it.
Result<CompactOutcome> compact_in_place(CompactRequest request,
                                        FileStamp const& stamp,
                                        Progress const& progress);

}  // namespace dkv::offline
