#include "cli/saved/offline/pages.h"

#include <cstdint>
#include <unistd.h>

#include <sys/mman.h>

namespace dkv::offline {
namespace {

// A file of no more stays mapped: to map it again for the second pass, page by page, takes as long
// as its checksums.
constexpr std::size_t kMappedBytesMax = std::size_t{4} << 30U;

/// The whole pages of a view, and none that it shares with its neighbours.
void drop(SavedCache const& file, RowsView const& view) {
    auto const extent = extent_bytes(view);
    std::span<std::byte const> const mapped = file.mapped();
    if (view.data == nullptr || mapped.empty() || !extent) return;
    auto const page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    auto const first = reinterpret_cast<std::uintptr_t>(mapped.data());
    auto const begin = reinterpret_cast<std::uintptr_t>(view.data);
    std::uintptr_t const end = begin + extent.value();
    if (begin < first || end > first + mapped.size()) return;
    std::uintptr_t const from = (begin + page - 1) / page * page;
    std::uintptr_t const to = end / page * page;
    // What fails costs memory and nothing else.
    if (from < to)
        static_cast<void>(::madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED));
}

}  // namespace

void drop_pages(SavedCache const& file, SavedLayer const& layer) {
    if (file.mapped().size() <= kMappedBytesMax) return;
    drop(file, layer.keys);
    drop(file, layer.values);
    drop(file, layer.queries);
}

}  // namespace dkv::offline
