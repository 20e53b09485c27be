// Caches in folders: what each is, how large and old, and whether its bytes were verified.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/offline/progress.h"
#include "cli/saved/paths.h"
#include "cli/saved/store/record.h"

namespace dkv::cli {

struct StoredCache {
    std::filesystem::path path;
    SeenFile seen;
    std::string error = {};  ///< Not empty: it cannot be read; only what stands above is known.
    FileFormat format = FileFormat::Dkv;
    std::string model = {};
    std::uint32_t prompt_tokens = 0;
    bool whole = false;
    std::string policy = {};  ///< "snapkv 64"; empty: whole, or the file does not say.
    Verified verified = Verified::Never;
    std::int64_t verified_ns = 0;  ///< When, unless never.
};

/// In the order of find_inputs(). Only headers are read.
std::vector<StoredCache> list_store(InputFiles const& inputs, OpenOptions const& options);

/// Reads every byte: checksums where the format has some, finite numbers, and against the record of
/// the cache's folder: bytes that are others at the same size and time are damaged, in any format.
/// `record`, which is that of the folder of place_of(path), gets the verdict.
///
/// Errors: CorruptData when the cache is damaged. Of others (it cannot be read, or not without a
/// flag; Cancelled) the record gets nothing.
Result<void> verify_stored(std::filesystem::path const& path,
                           OpenOptions const& options,
                           VerifiedRecord& record,
                           offline::Progress const& progress);

}  // namespace dkv::cli
