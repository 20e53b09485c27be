// cp.async: copies that happen as late as they may, when a wait covers them. Until then the target
// holds NaNs, so that a missing wait, or one group too few, shows in the numbers.
//
//   cp.async.ca/cg.shared.global   async_copy(shared, global, 16)          (4, 8 or 16)
//   … with ignore-src/src-size     async_copy(shared, global, 16, have)    zeros behind `have`
//   cp.async.commit_group          commit_group()
//   cp.async.wait_group N          wait_group(N)
//   cp.async.wait_all              wait_all()
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include <cudaemu/block.h>
#include <cudaemu/thread.h>

namespace cudaemu {

struct AsyncCopy {
    void* to;
    void const* from;
    unsigned bytes;
    unsigned read;
};

// The calling thread's queue; kept by the scheduler.
void push_copy(AsyncCopy const& copy);
void commit_group();
/// The copies that are due when at most `pending` groups may stay; `all` takes uncommitted ones,
/// too. Good until the thread's next push_copy.
std::span<AsyncCopy const> due_copies(unsigned pending, bool every_copy);

inline void async_copy(
    void* to, void const* from, unsigned bytes, unsigned read, Place place = Place::current()) {
    if (bytes != 4 && bytes != 8 && bytes != 16)
        fail("cp.async of a size other than 4, 8 and 16", place);
    if (read > bytes) fail("cp.async reads more than it writes", place);
    if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0)
        fail("cp.async to a misaligned address", place);
    if (reinterpret_cast<std::uintptr_t>(from) % bytes != 0)
        fail("cp.async from a misaligned address", place);
    if (!is_shared(to, bytes)) fail("cp.async to memory that is not shared", place);
    if (read != 0 && !is_readable(from, read))
        fail("cp.async from memory that is not the device's", place);
    std::memset(to, 0xFF, bytes);
    push_copy({to, from, bytes, read});
}
inline void async_copy(void* to, void const* from, unsigned bytes, Place place = Place::current()) {
    async_copy(to, from, bytes, bytes, place);
}

// Here, not in the library: the sanitizers are to see the copies as the waiting thread's.
inline void land(std::span<AsyncCopy const> copies) {
    for (AsyncCopy const& copy : copies) {
        if (copy.read != 0) std::memcpy(copy.to, copy.from, copy.read);
        if (copy.read != copy.bytes)
            std::memset(static_cast<std::byte*>(copy.to) + copy.read, 0, copy.bytes - copy.read);
    }
}
inline void wait_group(unsigned pending) {
    land(due_copies(pending, false));
}
inline void wait_all() {
    land(due_copies(0, true));
}

}  // namespace cudaemu
