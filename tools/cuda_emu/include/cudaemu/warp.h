// The *_sync intrinsics, of cudaemu::exchange. Only __syncwarp orders memory, as CUDA says.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cudaemu/exchange.h>

namespace cudaemu {

/// The types that CUDA overloads shuffles for.
template <class T>
inline constexpr bool kShuffles =
    (std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8) || std::is_same_v<T, __half> ||
    std::is_same_v<T, __half2> || std::is_same_v<T, __nv_bfloat16> ||
    std::is_same_v<T, __nv_bfloat162>;

template <class T>
inline constexpr bool kMatches = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

enum class Shuffle { Index, Up, Down, Xor };

template <class T>
T shuffle(Shuffle kind, char const* name, unsigned mask, T value, int by, int width, Place place) {
    static_assert(kShuffles<T>, "CUDA has no __shfl_*_sync of this type");
    if (width < 1 || width > 32 || (width & (width - 1)) != 0)
        fail("the width of a shuffle is not a power of two up to 32", place);
    Gathered const all = exchange(mask, &value, sizeof value, {name}, place);
    int const lane = static_cast<int>(self->lane);
    int const first = lane & ~(width - 1);
    int source = lane;
    switch (kind) {
        case Shuffle::Index: source = first + (by & (width - 1)); break;
        case Shuffle::Up: source = lane - by < first ? lane : lane - by; break;
        case Shuffle::Down: source = lane + by >= first + width ? lane : lane + by; break;
        case Shuffle::Xor: source = (lane ^ by) >= first + width ? lane : lane ^ by; break;
    }
    if ((all.lanes >> source & 1U) == 0)
        fail("a shuffle reads a lane that is outside its mask or has returned", place);
    return all.of<T>(static_cast<unsigned>(source));
}

template <class Fold>
void for_lanes(unsigned lanes, Fold fold) {
    for (; lanes != 0; lanes &= lanes - 1)
        fold(static_cast<unsigned>(std::countr_zero(lanes)));
}

struct Votes {
    unsigned yes;
    unsigned lanes;
};
inline Votes vote(char const* name, unsigned mask, int predicate, Place place) {
    bool const mine = predicate != 0;
    Gathered const all = exchange(mask, &mine, sizeof mine, {name}, place);
    unsigned result = 0;
    for_lanes(all.lanes,
              [&](unsigned lane) { result |= static_cast<unsigned>(all.of<bool>(lane)) << lane; });
    return {result, all.lanes};
}

template <class T>
Votes match(char const* name, unsigned mask, T value, Place place) {
    static_assert(kMatches<T>, "CUDA has no __match_*_sync of this type");
    Gathered const all = exchange(mask, &value, sizeof value, {name}, place);
    unsigned result = 0;
    for_lanes(all.lanes, [&](unsigned lane) {
        if (std::memcmp(all.bytes[lane], &value, sizeof value) == 0) result |= 1U << lane;
    });
    return {result, all.lanes};
}

template <class T, class Combine>
T reduce(char const* name, unsigned mask, T value, Combine combine, Place place) {
    Gathered const all = exchange(mask, &value, sizeof value, {name}, place);
    auto const first = static_cast<unsigned>(std::countr_zero(all.lanes));
    T result = all.of<T>(first);
    for_lanes(all.lanes & (all.lanes - 1),
              [&](unsigned lane) { result = combine(result, all.of<T>(lane)); });
    return result;
}

}  // namespace cudaemu

#define CUDAEMU_AT ::cudaemu::Place place = ::cudaemu::Place::current()

inline void __syncwarp(unsigned mask = ~0U, CUDAEMU_AT) {
    cudaemu::exchange(mask, nullptr, 0, {"__syncwarp", true}, place);
}
inline unsigned __activemask() {
    return cudaemu::living_lanes();
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDAEMU_AT) {
    return cudaemu::shuffle(cudaemu::Shuffle::Index, "__shfl_sync", mask, value, source, width,
                            place);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, CUDAEMU_AT) {
    return cudaemu::shuffle(cudaemu::Shuffle::Up, "__shfl_up_sync", mask, value,
                            static_cast<int>(by), width, place);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, CUDAEMU_AT) {
    return cudaemu::shuffle(cudaemu::Shuffle::Down, "__shfl_down_sync", mask, value,
                            static_cast<int>(by), width, place);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, CUDAEMU_AT) {
    return cudaemu::shuffle(cudaemu::Shuffle::Xor, "__shfl_xor_sync", mask, value, by, width,
                            place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDAEMU_AT) {
    return cudaemu::vote("__ballot_sync", mask, predicate, place).yes;
}
inline int __any_sync(unsigned mask, int predicate, CUDAEMU_AT) {
    return cudaemu::vote("__any_sync", mask, predicate, place).yes != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDAEMU_AT) {
    auto const votes = cudaemu::vote("__all_sync", mask, predicate, place);
    return votes.yes == votes.lanes;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDAEMU_AT) {
    return cudaemu::match("__match_any_sync", mask, value, place).yes;
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all_equal, CUDAEMU_AT) {
    auto const votes = cudaemu::match("__match_all_sync", mask, value, place);
    *all_equal = votes.yes == votes.lanes;
    return *all_equal != 0 ? mask : 0;
}

#define CUDAEMU_REDUCE(name, type, expression)                                                \
    inline type name(unsigned mask, type value, CUDAEMU_AT) {                                 \
        return cudaemu::reduce(                                                               \
            #name, mask, value, [](type a, type b) { return static_cast<type>(expression); }, \
            place);                                                                           \
    }
CUDAEMU_REDUCE(__reduce_add_sync, unsigned, a + b)
CUDAEMU_REDUCE(__reduce_add_sync, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
CUDAEMU_REDUCE(__reduce_max_sync, unsigned, std::max(a, b))
CUDAEMU_REDUCE(__reduce_max_sync, int, std::max(a, b))
CUDAEMU_REDUCE(__reduce_min_sync, unsigned, std::min(a, b))
CUDAEMU_REDUCE(__reduce_min_sync, int, std::min(a, b))
CUDAEMU_REDUCE(__reduce_or_sync, unsigned, a | b)
CUDAEMU_REDUCE(__reduce_and_sync, unsigned, a& b)
CUDAEMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef CUDAEMU_REDUCE
#undef CUDAEMU_AT
