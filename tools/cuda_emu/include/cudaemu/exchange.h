// The warp's rendezvous, which every *_sync intrinsic is made of, and which the emulated bodies of
// inline PTX (mma.sync, ldmatrix) are to be made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <cudaemu/thread.h>

namespace cudaemu {

inline constexpr unsigned kLanes = 32;
inline constexpr std::size_t kLaneBytes = 64;

/// lane -> what it contributed. Bytes past its contribution are stale.
using LaneBytes = std::byte const (*)[kLaneBytes];

struct Gathered {
    LaneBytes bytes;
    unsigned lanes;  ///< Those of the mask that had not returned from the kernel.

    template <class T>
    T of(unsigned lane) const {
        static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kLaneBytes);
        T value;
        std::memcpy(static_cast<void*>(&value), bytes[lane], sizeof value);
        return value;
    }
};

struct Rendezvous {
    char const* name;            ///< "__shfl_sync": lanes that meet must call the same.
    bool orders_memory = false;  ///< __syncwarp: what a lane wrote before, others see after.
};

/// Waits until every living lane of `mask` is here, then lets each read what all gave (`bytes` of
/// `mine`, at most 64). The answer is good until the calling lane's next rendezvous of this mask.
/// Wrong masks and lanes that meet at different places or sizes end the program, naming both.
Gathered exchange(unsigned mask,
                  void const* mine,
                  std::size_t bytes,
                  Rendezvous what,
                  Place place = Place::current());

/// The same with one computation for the warp instead of one for each lane: the last lane to arrive
/// runs `compute(all, out)`; then every lane has its own row of `out` copied to `result`.
/// All 32 lanes must live. `compute` sees nothing of one lane: it is a warp-wide instruction's
/// body.
using Compute = void (*)(LaneBytes all, std::byte (*out)[kLaneBytes]);
void collective(void const* mine,
                std::size_t bytes,
                void* result,
                std::size_t result_bytes,
                Compute compute,
                char const* name,
                Place place = Place::current());

/// The lanes of the calling warp that have not returned from the kernel.
unsigned living_lanes();

}  // namespace cudaemu
