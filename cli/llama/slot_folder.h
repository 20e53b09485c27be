// A folder that a llama-server saves slots into, kept under a number of bytes by compaction.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cli/saved/offline/in_place.h"
#include "protocol/base/unique_fd.h"

namespace dkv::llama {

struct FolderRequest {
    std::filesystem::path folder;
    std::uint64_t budget = 0;  ///< Bytes of all slot files together.
    /// A file that was written to within that time is left alone: its server may not be done.
    std::chrono::milliseconds settle{5000};
    bool dry_run = false;
    offline::CompactRequest compact;  ///< Policy and what formats do not say.
};

/// One file that something happened to.
struct FileNews {
    std::filesystem::path path;
    Result<offline::CompactOutcome> outcome;  ///< Or why it was left as it is.
};

struct FolderTotals {
    std::size_t slots = 0;      ///< Slot files.
    std::size_t compacted = 0;  ///< Of them: cut already, now or before.
    std::size_t fresh = 0;      ///< Of them: written to within the time to settle.
    std::size_t left = 0;       ///< Of them: cannot be compacted; news said why.
    std::uint64_t bytes = 0;

    bool operator==(FolderTotals const&) const = default;
};

/// One program at a time has a folder.
///
/// A file is replaced by its compacted form in one step, once that form is on the disk and was
/// read back. Which files are compacted already is seen in the files: a program that is killed
/// goes on where it was.
class SlotFolder {
public:
    /// Errors: those of resolve(); NotFound; AlreadyExists when another program has it; Io.
    static Result<SlotFolder> open(FolderRequest request);

    /// Compacts the files that were saved first, of equal age the larger ones, until the folder is
    /// within its budget or nothing is left to compact. `tell` gets each file once.
    ///
    /// Errors: Io when the folder cannot be read; Cancelled.
    Result<FolderTotals> pass(offline::Progress const& progress,
                              std::function<void(FileNews const&)> const& tell);

private:
    enum class State : std::uint8_t { Other, Whole, Compacted, Left };
    struct Known {
        offline::FileStamp stamp;
        State state = State::Other;
    };
    struct Slot {
        std::filesystem::path path;
        offline::FileStamp stamp;
    };
    using Tell = std::function<void(FileNews const&)>;

    SlotFolder(FolderRequest request, UniqueFd lock)
        : request_(std::move(request)), lock_(std::move(lock)) {}

    State look(std::filesystem::path const& path, Tell const& tell);
    Result<std::vector<Slot>> scan(FolderTotals& totals, Tell const& tell);
    Result<offline::CompactOutcome> compact(Slot const& slot, offline::Progress const& progress);

    FolderRequest request_;
    UniqueFd lock_;
    std::map<std::filesystem::path, Known> known_;
};

}  // namespace dkv::llama
