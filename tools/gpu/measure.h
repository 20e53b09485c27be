// Ops of the CUDA backend timed by the device's own clock. No CUDA header is included here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"

namespace dkv::gpu {

/// A layer's cache, as large as a model has it.
struct Shape {
    std::string model;
    std::uint32_t q_heads = 0;
    std::uint32_t kv_heads = 0;
    std::uint32_t head_dim = 0;
    Dtype dtype = Dtype::F32;
    std::uint32_t tokens = 0;
};

struct Options {
    std::vector<Shape> shapes;
    std::string filter;            ///< Ops whose name begins with it; empty: all.
    unsigned runs = 1;             ///< Timed together, behind one that is not timed.
    std::uint64_t cold_bytes = 0;  ///< Inputs take turns until they are larger than any cache.
};

/// Bytes are those that the op cannot do without: every input and output once for each pass over
/// it. tools/gpu/roofline.py counts the same.
struct Measured {
    std::string op;
    Shape shape;
    double seconds = 0;
    double bytes = 0;
};

/// Bytes a second of a copy from device memory to device memory, read and written together: the
/// best of `runs`.
///
/// Errors: those of cuda::devices(); LimitExceeded; Device.
Result<double> copy_rate(std::uint64_t bytes, unsigned runs);

/// Errors: those of copy_rate().
Result<std::vector<Measured>> measure(Options const& options);

}  // namespace dkv::gpu
