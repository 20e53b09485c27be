// The files of a folder that a cache is spread over.
#pragma once

#include <string_view>
#include <vector>

#include "sidecar/files/words.h"

namespace dkv {

/// What ends in `extension` (".data"), in the order of the names, numbers in them as numbers:
/// "layers.2" before "layers.10". Errors: Io; LimitExceeded for more than 100,000 entries.
Result<std::vector<std::filesystem::path>> files_of(std::filesystem::path const& folder,
                                                    std::string_view extension);

/// The same order for any two names.
bool comes_before(std::string_view left, std::string_view right) noexcept;

}  // namespace dkv
