// What this machine reads, and what this process takes of its memory.
#pragma once

#include <atomic>
#include <filesystem>
#include <thread>

#include "protocol/base/result.h"

namespace dkv::bench {

/// Reads the file with read() into buffers of 1 MiB, on every core.
Result<std::size_t> read_file(std::filesystem::path const& path);

/// Of this process so far, every thread, in user and in kernel space.
double cpu_seconds();

/// Looks at /proc/self/status from time to time while it lives.
class PeakMemory {
public:
    PeakMemory();
    PeakMemory(PeakMemory const&) = delete;
    PeakMemory& operator=(PeakMemory const&) = delete;
    ~PeakMemory();

    /// RssAnon at most, beyond what it was at the beginning: neither files' pages, which are the
    /// page cache, nor what runs before have left.
    double anonymous_mib() const;

private:
    double begin_ = 0;
    std::atomic<double> peak_ = 0;
    std::atomic<bool> stop_ = false;
    std::thread thread_;
};

}  // namespace dkv::bench
