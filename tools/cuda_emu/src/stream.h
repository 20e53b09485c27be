// Streams: queues of work, run eagerly or as late as possible.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "tools/cuda_emu/src/runtime.h"

namespace cudaemu {

struct Stream;

/// Work behind `sequence` of `stream`: done when the stream has done as many.
struct Dependency {
    std::shared_ptr<Stream> stream;
    std::uint64_t sequence = 0;
};

struct Work {
    std::function<void()> run;
    std::vector<Dependency> after;
    /// Asked before it runs; empty: always. May be asked often.
    std::function<bool()> ready;
    bool on_host = false;  ///< A host function: runs without the lock.
};

struct Stream {
    unsigned flags = 0;
    int priority = 0;
    int device = 0;
    std::uint64_t id = 0;
    std::uint64_t pushed = 0;
    std::uint64_t done = 0;
    std::uint64_t wanted = 0;  ///< Up to here the pump runs even a lazy stream.
    std::chrono::steady_clock::time_point wanted_since;
    bool running = false;
    bool capturing = false;  ///< What is pushed goes to a graph that is never launched.
    std::deque<Work> queue;
};

/// Null when `handle` names no living stream.
std::shared_ptr<Stream> stream_of(cudaStream_t handle);

std::shared_ptr<Stream> const& legacy_stream();

/// Queues work; runs what can run unless streams are lazy. The sequence number of the work.
std::uint64_t push(std::shared_ptr<Stream> const& stream, Lock& lock, Work work);

/// Runs one piece of `stream`'s work, or of work it waits for; false when nothing can run now.
bool step(std::shared_ptr<Stream> const& stream, Lock& lock);

/// Runs until `stream` has done `sequence`, waiting for other processes where it must.
void finish(std::shared_ptr<Stream> const& stream, std::uint64_t sequence, Lock& lock);
void finish_everything(Lock& lock);

/// Has a thread of the emulation's own keep streams going when this process does not ask for it:
/// what other processes wait for, and what waits for them. `sequence` 0: no more than what eager
/// streams run.
void pump(std::shared_ptr<Stream> const& stream, std::uint64_t sequence);

}  // namespace cudaemu
