// A stack of its own for each device thread, and the switch between them.
#pragma once

#include <boost/context/detail/fcontext.hpp>
#include <cstddef>

#include "tools/cuda_emu/src/sanitizers.h"

namespace cudaemu {

/// The host's thread while it runs a grid is one, too: default-constructed.
struct Fiber {
    boost::context::detail::fcontext_t context = nullptr;
    void const* stack = nullptr;
    std::size_t stack_bytes = 0;
    void* asan = nullptr;
    void* tsan = nullptr;
};

/// Gives `fiber` a stack; the first switch to it calls `entry(argument)`, which never returns.
/// Stack `index` of many: their tops are spread over the cache's sets.
void make_fiber(Fiber& fiber, unsigned index, void (*entry)(void*), void* argument);

/// Makes `fiber` stand for the calling host thread.
void adopt_host(Fiber& fiber);

inline void arrive(boost::context::detail::transfer_t transfer, [[maybe_unused]] Fiber& me) {
    auto& from = *static_cast<Fiber*>(transfer.data);
    from.context = transfer.fctx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(me.asan, &from.stack, &from.stack_bytes);
#endif
}

/// Returns when another fiber switches back.
inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.asan, to.stack, to.stack_bytes);
#endif
#if defined(CUDAEMU_TSAN)
    constexpr unsigned kNoSynchronization = 1;
    __tsan_switch_to_fiber(to.tsan, kNoSynchronization);
#endif
    arrive(boost::context::detail::jump_fcontext(to.context, &from), from);
}

}  // namespace cudaemu
