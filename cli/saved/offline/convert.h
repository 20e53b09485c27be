// A saved cache in another format: every row that it has, as it is.
#pragma once

#include "cli/saved/offline/compact.h"

namespace dkv::offline {

struct ConvertRequest {
    std::filesystem::path input;
    std::filesystem::path output;
    std::optional<FileFormat> format = {};  ///< Nothing: the input's, or dkv's.
    OpenOptions open = {};
    std::optional<KeyOrder> key_order = {};  ///< Of the output, as WriteRequest has it.
    bool verify = true;  ///< Every byte read is checked before an output is committed.
    bool drop_queries = false;
    bool force = false;  ///< Also over a file that is there.
};

/// Compacted caches stay so. The outcome has no policy and no mass.
///
/// Errors: those of open_cache() and write_cache(); Unsupported for output = input; AlreadyExists
/// for a file under the output's name without force; interrupted().
Result<CompactOutcome> convert(Backend& backend,
                               ConvertRequest const& request,
                               Progress const& progress = {},
                               std::size_t file = 0);

}  // namespace dkv::offline
