// The files of a folder that a cache is spread over.
#pragma once

#include <string_view>
#include <vector>

#include "cli/saved/formats/words.h"

namespace dkv {

struct FolderFiles {
    std::vector<std::filesystem::path> files;
    /// "layer.safetensors.tmp": what a writer that was stopped leaves. Empty: none.
    std::filesystem::path leftover;
};

/// What ends in `extension` (".data"), in the order of the names, numbers in them as numbers:
/// "layers.2" before "layers.10"; hidden files are left out. Errors: Io; LimitExceeded for more
/// than 100,000 entries.
Result<FolderFiles> files_of(std::filesystem::path const& folder, std::string_view extension);

/// Errors: CorruptData, naming the leftover: a part of the cache may be missing.
inline Result<void> check_no_leftover(FolderFiles const& found) {
    if (found.leftover.empty()) return {};
    return located(found.leftover,
                   corrupt("by its name, a part of the cache that was not written to its end: save "
                           "the cache again, or remove this file"));
}

/// The same order for any two names.
bool comes_before(std::string_view left, std::string_view right) noexcept;

}  // namespace dkv
