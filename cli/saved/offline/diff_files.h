// Where two saved caches of one prompt differ.
#pragma once

#include "cli/saved/offline/diff.h"

namespace dkv::offline {

/// The mass is known where one of them is whole and has queries: those of the smallest window that
/// both went through. Without it, window is 0; capacity always is.
///
/// Errors: InvalidArgument when they are not of one prompt of one model, saying what differs; those
/// of the files and the backend.
Result<Diff> compare_files(Backend& backend,
                           SavedCache const& a,
                           SavedCache const& b,
                           std::array<std::string, 2> const& names);

}  // namespace dkv::offline
