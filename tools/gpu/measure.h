// Ops of the CUDA backend timed by the device's own clock. No CUDA header is included here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"

namespace dkv::gpu {

/// A layer's cache, as large as a model has it; tally has `layers` of them.
struct Shape {
    std::string model;
    std::uint32_t layers = 0;
    std::uint32_t q_heads = 0;
    std::uint32_t kv_heads = 0;
    std::uint32_t head_dim = 0;
    Dtype dtype = Dtype::F32;
    std::uint32_t tokens = 0;
};

struct Options {
    std::vector<Shape> shapes;
    std::string filter;            ///< Ops whose name begins with it; empty: all.
    unsigned runs = 1;             ///< Timed one by one, behind two that are not timed.
    std::uint64_t cold_bytes = 0;  ///< Read before each run: no input is in a cache then.
    std::uint64_t copy_bytes = 0;
    double warm_seconds = 0;  ///< Of work before anything is timed: clocks rise slowly.
};

/// What the device says of itself; 0 where it does not say.
struct Peaks {
    double clock_hz = 0;  ///< The multiprocessors', at most.
    double memory_bytes_per_second = 0;
    std::uint64_t l2_bytes = 0;
};

/// Of the runs, in seconds.
struct Times {
    double median = 0;
    double least = 0;
    double most = 0;
};

/// Bytes are those that the op cannot do without: every input and output once for each pass over
/// it. tools/gpu/roofline.py counts the same.
struct Measured {
    std::string op;
    Shape shape;
    Times seconds;
    double bytes = 0;
};

/// Of the first device. Errors: those of cuda::devices(); Device.
Result<Peaks> peaks();

/// Bytes a second of copies of `copy_bytes` from device memory to device memory, read and written
/// together: the median of `runs`, `warm_seconds` of them before.
///
/// Errors: those of cuda::devices(); LimitExceeded; Device.
Result<double> copy_rate(Options const& options);

/// Hands `each` op to the caller as soon as it is measured. Errors: those of copy_rate().
Result<void> measure(Options const& options, std::function<void(Measured const&)> const& each);

}  // namespace dkv::gpu
