// How a kernel's fault is told.
#include <cstdio>
#include <cstdlib>

#include "tools/cuda_emu/src/block.h"

namespace cudaemu {

void print_order();

void Block::print_thread(Lane const& lane) {
    bool const known = lane.place.line() != 0;
    std::fprintf(stderr, "  block (%u,%u,%u) thread (%u,%u,%u) %s: %s at %s:%u in %s\n", blockIdx.x,
                 blockIdx.y, blockIdx.z, lane.tid.x, lane.tid.y, lane.tid.z,
                 lane.state == State::AtBarrier ? "waits for the block"
                 : lane.state == State::AtWarp  ? "waits for its warp"
                                                : "runs",
                 lane.doing, known ? lane.place.file_name() : "?", lane.place.line(),
                 known ? lane.place.function_name() : "?");
}

void Block::print_threads() {
    constexpr unsigned kShown = 8;
    unsigned shown = 0;
    for (unsigned i = 0; i < threads_ && shown < kShown; ++i) {
        if (lanes_[i]->state == State::Returned) continue;
        print_thread(*lanes_[i]);
        ++shown;
    }
    if (live_ > shown) std::fprintf(stderr, "  and %u more\n", live_ - shown);
}

void Block::deadlock() {
    std::fprintf(stderr, "cudaemu: deadlock: %u of %u threads live, and none can run\n", live_,
                 threads_);
    print_threads();
    print_order();
    std::abort();
}

void fail(char const* what) {
    std::fprintf(stderr, "cudaemu: %s\n", what);
    if (self != nullptr) block().print_thread(block().current());
    print_order();
    std::abort();
}

void fail(char const* what, Place place) {
    if (self != nullptr) block().current().place = place;
    fail(what);
}

}  // namespace cudaemu
