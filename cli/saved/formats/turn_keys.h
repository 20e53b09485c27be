// Keys of one position made keys of another: RoPE turned by the difference.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "protocol/base/dtype.h"
#include "protocol/base/result.h"
#include "protocol/container/rope.h"

namespace dkv {

class KeyTurner {
public:
    /// Errors: Unsupported, naming the reason, for a rope without a theta or with a scaling other
    /// than "default", "linear" and "llama3"; InvalidArgument for dims that are odd or more than
    /// head_dim.
    static Result<KeyTurner> create(RopeFacts const& rope, std::uint32_t head_dim, Dtype dtype);

    /// One row, in place, by `by` positions. The arithmetic is f64; the row is rounded once.
    void turn(std::span<std::byte> row, std::int64_t by) const;

private:
    KeyTurner() = default;

    std::vector<double> frequencies_;  // Radians per position, of each pair.
    bool interleaved_ = false;
    Dtype dtype_ = Dtype::F32;
};

}  // namespace dkv
