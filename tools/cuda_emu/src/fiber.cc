#include "tools/cuda_emu/src/fiber.h"

#include <cstdio>
#include <cstdlib>
#include <unistd.h>

#include <sys/mman.h>

namespace cudaemu {
namespace {

using boost::context::detail::transfer_t;

constexpr std::size_t kStackBytes = std::size_t{128} << 10U;
// Tops at one offset of their pages would share one set of the first-level cache: a warp's 32 lanes
// would evict each other at every switch.
constexpr std::size_t kColours = 32;
constexpr std::size_t kColourBytes = 3 * 64;

/// What a fiber's first switch finds on its stack.
struct Start {
    Fiber* fiber;
    void (*entry)(void*);
    void* argument;
};

void begin(transfer_t transfer) {
    // Sent by make_fiber, which waits for `start` to be read.
    Start const start = *static_cast<Start*>(transfer.data);
    transfer = boost::context::detail::jump_fcontext(transfer.fctx, nullptr);
    arrive(transfer, *start.fiber);
    start.entry(start.argument);
    std::abort();
}

}  // namespace

void make_fiber(Fiber& fiber, unsigned index, void (*entry)(void*), void* argument) {
    auto const page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    void* const memory = ::mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || ::mprotect(memory, page, PROT_NONE) != 0) {
        std::fprintf(stderr, "cudaemu: no memory for the stack of thread %u\n", index);
        std::abort();
    }
    char* const low = static_cast<char*>(memory) + page;
    fiber.stack = low;
    fiber.stack_bytes = kStackBytes - index % kColours * kColourBytes;
#if defined(CUDAEMU_TSAN)
    fiber.tsan = __tsan_create_fiber(0);  // Kept: creating one takes a millisecond.
#endif
    Start start{&fiber, entry, argument};
    auto const made =
        boost::context::detail::make_fcontext(low + fiber.stack_bytes, fiber.stack_bytes, begin);
    fiber.context = boost::context::detail::jump_fcontext(made, &start).fctx;
}

void adopt_host([[maybe_unused]] Fiber& fiber) {
#if defined(CUDAEMU_TSAN)
    fiber.tsan = __tsan_get_current_fiber();
#endif
}

}  // namespace cudaemu
