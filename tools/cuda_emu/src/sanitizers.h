// What the emulation tells the sanitizers: fibers, poison, what happens before what.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Compiled without -fsanitize=thread (instrumented, the scheduler would confuse it), but linked
// with its runtime: the build defines CUDAEMU_TSAN.
#if defined(CUDAEMU_TSAN)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreWritesBegin(char const* file, int line);
void AnnotateIgnoreWritesEnd(char const* file, int line);
}
#endif

namespace cudaemu {

inline void poison([[maybe_unused]] void const* begin, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(begin, bytes);
#endif
}
inline void unpoison([[maybe_unused]] void const* begin, [[maybe_unused]] std::size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(begin, bytes);
#endif
}
/// What the calling thread did so far happens before what follows acquire() of the same address.
inline void release([[maybe_unused]] void* address) {
#if defined(CUDAEMU_TSAN)
    __tsan_release(address);
#endif
}
inline void acquire([[maybe_unused]] void* address) {
#if defined(CUDAEMU_TSAN)
    __tsan_acquire(address);
#endif
}

/// While one lives, memory that is allocated does not count as written.
class Unobserved {
public:
    Unobserved() {
#if defined(CUDAEMU_TSAN)
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
    }
    ~Unobserved() {
#if defined(CUDAEMU_TSAN)
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
#endif
    }
    Unobserved(Unobserved const&) = delete;
    Unobserved& operator=(Unobserved const&) = delete;
};

}  // namespace cudaemu
