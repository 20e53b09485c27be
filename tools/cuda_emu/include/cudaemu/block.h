// __syncthreads and its kin.
#pragma once

#include <cstddef>

#include <cudaemu/thread.h>

namespace cudaemu {

enum class Barrier : unsigned { Plain, Count, And, Or };

/// Waits for every thread of the block that has not returned. Threads that wait at different places
/// end the program.
int block_barrier(Barrier kind, bool predicate, Place place);

/// The block's dynamic shared memory; NaNs when the block starts.
void* dynamic_shared();

/// All of it is the running block's shared memory, static or dynamic.
bool is_shared(void const* address, std::size_t bytes);
/// All of it is memory that a kernel may read on any GPU: the device's, or page-locked.
bool is_readable(void const* address, std::size_t bytes);

}  // namespace cudaemu

inline void __syncthreads(cudaemu::Place place = cudaemu::Place::current()) {
    cudaemu::block_barrier(cudaemu::Barrier::Plain, false, place);
}
inline int __syncthreads_count(int predicate, cudaemu::Place place = cudaemu::Place::current()) {
    return cudaemu::block_barrier(cudaemu::Barrier::Count, predicate != 0, place);
}
inline int __syncthreads_and(int predicate, cudaemu::Place place = cudaemu::Place::current()) {
    return cudaemu::block_barrier(cudaemu::Barrier::And, predicate != 0, place);
}
inline int __syncthreads_or(int predicate, cudaemu::Place place = cudaemu::Place::current()) {
    return cudaemu::block_barrier(cudaemu::Barrier::Or, predicate != 0, place);
}
