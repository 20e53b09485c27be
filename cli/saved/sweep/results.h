// The results of sweeps: a JSON object per line, in a file that only grows at its end.
#pragma once

#include <filesystem>
#include <string>
#include <unordered_map>
#include <vector>

#include "cli/render/json.h"
#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/offline/sweep.h"
#include "cli/saved/sweep/grid.h"
#include "protocol/base/unique_fd.h"

namespace dkv::cli {

/// Belongs to one process at a time.
class ResultsFile {
public:
    /// Makes an empty one where there is none. A last line that an interruption cut off is taken
    /// off again.
    ///
    /// Errors: Io; CorruptData, with the line, for a file that is not results; LimitExceeded while
    /// another sweep writes it.
    static Result<ResultsFile> open(std::filesystem::path const& path);

    std::vector<Json> const& rows() const noexcept { return rows_; }

    /// The row of this point of this content of this file; nullptr: there is none. One from before
    /// there was a damage does not count.
    Json const* find(SweepFile const& file,
                     std::string const& fingerprint,
                     Json const& asked,
                     bool with_error) const;

    /// On the disk when it returns; all of them, or none.
    Result<void> append(std::vector<Json> const& rows);

private:
    ResultsFile(UniqueFd file, std::filesystem::path path)
        : file_(std::move(file)), path_(std::move(path)) {}
    Error io(char const* what) const;
    Result<std::string> read() const;
    Result<void> take(std::string const& text);
    void add(Json row);

    UniqueFd file_;
    std::filesystem::path path_;
    std::uint64_t bytes_ = 0;
    std::vector<Json> rows_;
    std::unordered_map<std::string, std::vector<std::size_t>> by_fingerprint_;  // Into rows_.
};

/// What tells one content of a file or folder from another: its size and the CRC-32 of all its
/// bytes; a folder's also of its files' names. Errors: Io.
Result<std::string> fingerprint(std::filesystem::path const& path);

Json row_json(SweepFile const& file,
              std::string const& fingerprint,
              CacheFacts const& facts,
              GridPoint const& point,
              bool with_error,
              offline::SweepRow const& row);

/// A line of titles and a line for each row, for spreadsheets: means instead of lists.
std::string csv_text(std::vector<Json> const& rows);

}  // namespace dkv::cli
