// CUDA's atomics as real ones, relaxed, so that the thread sanitizer and other processes see them
// as such. Every width: shared and global memory are one here.
#pragma once

#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace cudaemu {

/// *address = next(*address), atomically; the old value.
template <class T, class Next>
T atomic_update(T* address, Next next) {
    T old;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    T wanted = next(old);
    while (!__atomic_compare_exchange(address, &old, &wanted, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED))
        wanted = next(old);
    return old;
}

}  // namespace cudaemu

#define CUDAEMU_ATOMIC(name, expression)                                                           \
    template <class T>                                                                             \
    T name(T* address, std::type_identity_t<T> value) {                                            \
        return cudaemu::atomic_update(address, [&](T old) { return static_cast<T>(expression); }); \
    }                                                                                              \
    template <class T>                                                                             \
    T name##_block(T* address, std::type_identity_t<T> value) {                                    \
        return name(address, value);                                                               \
    }                                                                                              \
    template <class T>                                                                             \
    T name##_system(T* address, std::type_identity_t<T> value) {                                   \
        return name(address, value);                                                               \
    }
CUDAEMU_ATOMIC(atomicAdd, old + value)
CUDAEMU_ATOMIC(atomicSub, old - value)
CUDAEMU_ATOMIC(atomicOr, old | value)
CUDAEMU_ATOMIC(atomicAnd, old& value)
CUDAEMU_ATOMIC(atomicXor, old ^ value)
CUDAEMU_ATOMIC(atomicExch, (static_cast<void>(old), value))
CUDAEMU_ATOMIC(atomicMax, old < value ? value : old)
CUDAEMU_ATOMIC(atomicMin, value < old ? value : old)
CUDAEMU_ATOMIC(atomicInc, old >= value ? T{} : static_cast<T>(old + 1))
CUDAEMU_ATOMIC(atomicDec, old == T{} || old > value ? value : static_cast<T>(old - 1))
#undef CUDAEMU_ATOMIC

template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    static_assert(std::is_integral_v<T> && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8),
                  "CUDA has no atomicCAS of this type");
    __atomic_compare_exchange(address, &expected, &value, false, __ATOMIC_RELAXED,
                              __ATOMIC_RELAXED);
    return expected;
}

inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_block() {
    __threadfence();
}
inline void __threadfence_system() {
    __threadfence();
}
