// What the names of LMCache's chunks tell: model and worker, and the order of the prompt.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "protocol/base/result.h"

namespace dkv {

/// What LMCache says in a name: "FORMAT@MODEL@WORLD@WORKER@HASH", or, later, "MODEL@WORLD@WORKER@
/// HASH@DTYPE" and more.
struct ChunkName {
    std::string model;  ///< Empty: another name.
    std::string world;
    std::string worker;

    bool operator==(ChunkName const&) const = default;
};

ChunkName chunk_name(std::filesystem::path const& path);

/// "12.data", "12-first.data". A hash is not a number, whatever it begins with.
bool has_number(std::filesystem::path const& path);

/// A folder's chunks in the order of the prompt: that of the numbers in the names where all have
/// one (0.data, 1.data …), else that in which they were written.
///
/// Errors: Io; CorruptData, naming it, for a number that is missing or there twice; Unsupported,
/// when two were written at the same time.
Result<std::vector<std::filesystem::path>> lmcache_chunks(std::filesystem::path const& folder);

}  // namespace dkv
