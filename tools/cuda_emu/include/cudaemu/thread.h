// The device thread that runs now, and how a kernel's fault ends the program.
#pragma once

#include <source_location>

namespace cudaemu {

/// Where in a kernel a thread called an intrinsic.
#ifdef __cpp_lib_source_location
using Place = std::source_location;
#else  // clang-tidy 14 reads this, and nothing compiles it.
struct Place {
    static constexpr Place current() { return {}; }
    static constexpr char const* file_name() { return ""; }
    static constexpr char const* function_name() { return ""; }
    static constexpr unsigned line() { return 0; }
    static constexpr unsigned column() { return 0; }
};
#endif

struct Thread {
    uint3 tid;
    unsigned lane;
    unsigned warp;
    unsigned linear;
};

/// The running device thread; null on the host.
extern Thread* self;

/// Says what is wrong, which block and thread did it and where it was last seen, and aborts.
[[noreturn]] void fail(char const* what);
[[noreturn]] void fail(char const* what, Place place);

/// Lets other threads of the block run: __nanosleep.
void pause(Place place);

}  // namespace cudaemu
