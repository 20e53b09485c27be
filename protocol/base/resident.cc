#include "protocol/base/resident.h"

#include <algorithm>
#include <array>
#include <unistd.h>

#include <sys/mman.h>

namespace dkv {

std::uint64_t resident_bytes(std::byte const* begin, std::uint64_t bytes) noexcept {
    auto const page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    std::array<unsigned char, 4096> resident{};
    std::uint64_t pages = 0;
    std::uintptr_t const end = reinterpret_cast<std::uintptr_t>(begin) + bytes;
    for (std::uintptr_t at = reinterpret_cast<std::uintptr_t>(begin) / page * page; at < end;
         at += resident.size() * page) {
        std::uintptr_t const some = std::min<std::uintptr_t>(resident.size() * page, end - at);
        if (::mincore(reinterpret_cast<void*>(at), some, resident.data()) != 0) return 0;
        auto const last = resident.begin() + static_cast<std::ptrdiff_t>((some + page - 1) / page);
        pages += static_cast<std::uint64_t>(
            std::count_if(resident.begin(), last, [](auto flags) { return (flags & 1U) != 0; }));
    }
    return pages * page;
}

}  // namespace dkv
