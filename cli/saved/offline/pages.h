// Which pages of a mapped file are in memory.
#pragma once

#include "cli/saved/formats/saved_cache.h"

namespace dkv::offline {

/// Drops a layer's mapped pages of a large file from this process's memory; the operating system
/// may keep them cached. They come back when they are read again.
void drop_pages(SavedCache const& file, SavedLayer const& layer);

}  // namespace dkv::offline
