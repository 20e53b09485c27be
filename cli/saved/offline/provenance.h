// What a written file says of how it came about: the same for the same request, whenever and
// wherever it is made.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "sidecar/policy/params.h"

namespace dkv::offline {

using Provenance = std::map<std::string, std::string>;

/// The policy and every parameter of it; the size as it was asked for.
void describe_policy(PolicyParams const& params, Provenance& provenance);

/// A file's, or a folder's files', size and a CRC-32 of samples of it: another prompt's differ.
///
/// Errors: Io, beginning with the path.
struct SourcePrint {
    std::uint64_t bytes = 0;
    std::uint32_t crc = 0;
};
Result<SourcePrint> source_print(std::filesystem::path const& path);

}  // namespace dkv::offline
