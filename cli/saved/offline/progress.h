// How long work over files says where it is, and how it is told to stop.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "protocol/base/result.h"

namespace dkv::offline {

/// Called from several threads at once where several files are worked on.
struct Progress {
    /// `file` index of the batch; `done` of `total` bytes of it read.
    std::function<void(std::size_t file, std::uint64_t done, std::uint64_t total)> advance;
    /// Whether to stop: the work ends with Cancelled at the next layer, and leaves no output.
    std::function<bool()> stop;

    void report(std::size_t file, std::uint64_t done, std::uint64_t total) const {
        if (advance) advance(file, done, total);
    }
    bool stopped() const { return stop && stop(); }
};

/// "interrupted": what work that was told to stop ends with.
inline Error interrupted() {
    return {ErrorCode::Cancelled, "interrupted"};
}

}  // namespace dkv::offline
