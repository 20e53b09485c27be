#include "protocol/base/guarded_memory.h"

#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <mutex>
#include <string>
#include <unistd.h>
#include <utility>

#include <sys/mman.h>
#include <sys/syscall.h>

namespace dkv {
namespace {

constexpr std::size_t kPlaces = 1U << 15U;

/// One mapping. The handler reads it at any moment: begin is set last and cleared first.
struct Place {
    std::atomic<std::uintptr_t> begin{0};
    std::atomic<std::uintptr_t> end{0};
    std::atomic<bool> missing{false};
};

std::array<Place, kPlaces> places;
std::atomic<std::size_t> places_used{0};  // None behind it was ever taken.
std::mutex taking;

/// A system call, and no library's function around it, is what a handler may call.
void on_bus_error(int /*number*/, siginfo_t* info, void* /*context*/) {
    auto const at = reinterpret_cast<std::uintptr_t>(info->si_addr);
    auto const page = static_cast<std::uintptr_t>(::getpagesize());
    for (std::size_t index = 0; index < places_used; ++index) {
        Place& place = places[index];
        auto const begin = place.begin.load();
        if (begin == 0 || at < begin || at >= place.end) continue;
        place.missing = true;
        if (::syscall(SYS_mmap, at / page * page, page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != -1)
            return;
        break;
    }
    std::signal(SIGBUS, SIG_DFL);  // It comes again, and ends the process.
}

}  // namespace

void survive_missing_pages() {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, nullptr);
}

Result<GuardedMemory> GuardedMemory::over(void const* begin, std::size_t bytes) {
    std::lock_guard const lock(taking);
    std::size_t free = 0;
    while (free < kPlaces && places[free].begin != 0)
        ++free;
    if (free == kPlaces)
        return Error{ErrorCode::LimitExceeded,
                     std::to_string(kPlaces) + " mappings are guarded, which is the limit"};
    Place& place = places[free];
    place.missing = false;
    place.end = reinterpret_cast<std::uintptr_t>(begin) + bytes;
    place.begin = reinterpret_cast<std::uintptr_t>(begin);
    if (free >= places_used) places_used = free + 1;
    GuardedMemory guarded;
    guarded.place_ = free + 1;
    return guarded;
}

GuardedMemory::GuardedMemory(GuardedMemory&& other) noexcept
    : place_(std::exchange(other.place_, 0)) {}

GuardedMemory& GuardedMemory::operator=(GuardedMemory&& other) noexcept {
    std::swap(place_, other.place_);
    return *this;
}

GuardedMemory::~GuardedMemory() {
    if (place_ != 0) places[place_ - 1].begin = 0;
}

bool GuardedMemory::is_whole() const noexcept {
    return place_ == 0 || !places[place_ - 1].missing;
}

}  // namespace dkv
