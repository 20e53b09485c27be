// Whose limits hold for kernels.
#pragma once

#include <cstddef>

namespace cudaemu {

/// What a multiprocessor has, by the Programming Guide's table.
struct Architecture {
    int number;                    ///< 80: compute capability 8.0.
    int threads;                   ///< Of a multiprocessor.
    int blocks;                    ///< Likewise.
    std::size_t shared;            ///< Bytes, likewise.
    std::size_t shared_block_max;  ///< What cudaFuncSetAttribute may give to a block.
};

/// CUDAEMU_ARCH=80, 86, 89, 90, 100 or 120. Without it sm_80, but no block gets more than it would
/// on every one of them: what runs here is to be launched anywhere.
Architecture const& architecture();

}  // namespace cudaemu
