// Which files a command works on, and where their outputs go.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/saved/formats/saved_cache.h"
#include "protocol/base/result.h"

namespace dkv::cli {

/// A file, or a folder that is one cache.
struct InputFile {
    std::filesystem::path path;
    std::filesystem::path name;  ///< Under the folder of the outputs.
};

struct InputFiles {
    std::vector<InputFile> files;
    /// In folders: files that are not caches. Files that a message should name are among `files`.
    std::size_t skipped = 0;
    bool in_folder = false;  ///< The outputs go into a folder: several files, or a folder of them.
};

/// `paths` as given: files stand for themselves, whatever they are, and folders for the caches in
/// them, in the order of their names; with `recursive` also in the folders below.
///
/// Errors: NotFound, naming it, for a folder without a cache; Io for one that cannot be read.
Result<InputFiles> find_inputs(std::vector<std::string> const& paths,
                               bool recursive,
                               OpenOptions const& options);

/// Where each goes. `out` is the output of one file; a folder, which is made when `make_folders`,
/// for several, or when it is one already or ends with a slash.
///
/// Errors: InvalidArgument, naming both, when two would have the same name; Io.
Result<std::vector<std::filesystem::path>> outputs_of(InputFiles const& inputs,
                                                      std::string const& out,
                                                      bool make_folders);

/// Where a cache lies: the real path of its folder, and its name in that folder; a link has its own
/// name. "d/x", "d/x/", "d/./x" and "." in d/x are one place. What is not there: `path` as it is.
std::filesystem::path place_of(std::filesystem::path const& path);

/// Size and time of a file, or of all files in a folder and the folders below.
struct SeenFile {
    std::uint64_t bytes = 0;
    std::int64_t written_ns = 0;  ///< Since 1970; of a folder the latest.
    bool operator==(SeenFile const&) const = default;
};

/// Zeros where it cannot be known.
SeenFile seen_file(std::filesystem::path const& path);

/// Bytes of each; they have a path.
template <class Files>
std::vector<std::uint64_t> sizes_of(Files const& files) {
    std::vector<std::uint64_t> sizes;
    for (auto const& file : files)
        sizes.push_back(seen_file(file.path).bytes);
    return sizes;
}

}  // namespace dkv::cli
