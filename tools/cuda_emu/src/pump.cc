#include "tools/cuda_emu/src/pump.h"

#include <algorithm>
#include <ctime>
#include <linux/futex.h>
#include <thread>
#include <unistd.h>

#include <climits>
#include <sys/syscall.h>

namespace cudaemu {
namespace {

// A lazy stream's write for another process becomes visible this much later, as late work does on a
// busy GPU: another process may poll for it while this one does not.
constexpr std::chrono::milliseconds kLateness{3};
constexpr timespec kBusy{0, 200'000};
constexpr timespec kIdle{0, 500'000'000};

std::atomic<std::uint32_t> own_doorbell{0};                  // NOLINT
std::atomic<std::atomic<std::uint32_t>*> doorbell{nullptr};  // NOLINT
std::atomic<void (*)()> look_for_wishes{nullptr};            // NOLINT

void wait_for_ring(std::atomic<std::uint32_t>& bell, std::uint32_t seen, timespec const& timeout) {
    ::syscall(SYS_futex, &bell, FUTEX_WAIT, seen, &timeout, nullptr, 0);
}

/// True while there is something that must be looked at again soon.
bool serve(Lock& lock) {
    if (auto* const look = look_for_wishes.load()) look();
    bool busy = false;
    auto const now = std::chrono::steady_clock::now();
    for (auto const& stream : every_stream()) {
        bool const late = lazy_streams() && now - stream->wanted_since < kLateness;
        std::uint64_t const until = lazy_streams() ? stream->wanted : stream->pushed;
        while (!late && stream->done < until && step(stream, lock)) {
        }
        busy = busy || stream->done < until;
    }
    return busy;
}

void run() {
    while (true) {
        auto* const outer = doorbell.load();
        std::atomic<std::uint32_t>& bell = outer == nullptr ? own_doorbell : *outer;
        std::uint32_t const seen = bell.load();
        Lock lock(device_mutex());
        bool const busy = serve(lock);
        lock.unlock();
        wait_for_ring(bell, seen, busy ? kBusy : kIdle);
    }
}

void start() {
    static bool const started = (std::thread(run).detach(), true);
    static_cast<void>(started);
}

}  // namespace

void ring(std::atomic<std::uint32_t>& bell) {
    bell.fetch_add(1);
    ::syscall(SYS_futex, &bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void start_pump(std::atomic<std::uint32_t>& bell, void (*look)()) {
    doorbell = &bell;
    look_for_wishes = look;
    start();
    ring(own_doorbell);
}

void pump(std::shared_ptr<Stream> const& stream, std::uint64_t sequence) {
    if (sequence > stream->wanted) {
        if (stream->wanted <= stream->done) stream->wanted_since = std::chrono::steady_clock::now();
        stream->wanted = sequence;
    }
    start();
    auto* const outer = doorbell.load();
    ring(outer == nullptr ? own_doorbell : *outer);
}

}  // namespace cudaemu
