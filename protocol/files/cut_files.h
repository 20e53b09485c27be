// What happens to a program when a file that it has mapped is cut short.
#pragma once

namespace dkv {

/// From now on the pages that are gone read as zeros, in the whole process, where a touch would
/// otherwise end it (SIGBUS); MappedFile::check_unchanged() tells of it. For a program's main().
void survive_cut_files();

}  // namespace dkv
