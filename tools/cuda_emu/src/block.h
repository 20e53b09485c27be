// The one block that runs: its threads, and who runs next. One at a time in a process, under the
// device's lock (runtime.h), since __shared__ is static memory here.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include <cuda_runtime.h>

#include "tools/cuda_emu/src/fiber.h"

namespace cudaemu {

enum class State : unsigned char { Ready, AtBarrier, AtWarp, Returned };

struct Lane : Thread {
    Fiber fiber;
    State state = State::Returned;
    char const* doing = "";
    Place place;
    // cp.async: copies in order; groups are committed prefixes' lengths. `due` is what was handed
    // out last.
    std::vector<AsyncCopy> copies;
    std::vector<std::size_t> groups;
    std::vector<AsyncCopy> due;
};

/// Lanes of one mask on their way to meet. Two rounds of data: who left the last round may come to
/// the next while others still read, but never to the one after.
struct Meeting {
    unsigned mask = 0;
    unsigned arrived = 0;
    unsigned round = 0;
    unsigned met[2] = {};
    std::size_t bytes = 0;
    Rendezvous what{};
    Place place;
    alignas(64) std::byte data[2][kLanes][kLaneBytes];
    alignas(64) std::byte results[2][kLanes][kLaneBytes];
};

struct Warp {
    unsigned ready = 0;
    unsigned at_barrier = 0;
    unsigned live = 0;
    std::vector<std::unique_ptr<Meeting>> meetings;
};

enum class Order { Forward, Reverse, Shuffle };

class Block {
public:
    /// Runs `body` as every thread of block `index`.
    void run(uint3 index, std::function<void()> const& body);

    /// Takes the caller off the processor until it is ready again.
    void yield(Lane& me);
    Lane& current() { return static_cast<Lane&>(*self); }
    Lane& lane(unsigned warp, unsigned lane) { return *lanes_[warp * kLanes + lane]; }
    Warp& warp(unsigned index) { return warps_[index]; }
    void make_ready(unsigned warp, unsigned lanes) {
        warps_[warp].ready |= lanes;
        ready_warps_ |= lanes != 0 ? 1U << warp : 0U;
    }
    int barrier(Barrier kind, bool predicate, Place place);

    /// Prints where the living threads are, the first few of them.
    void print_threads();
    void print_thread(Lane const& lane);

    void set_order(Order order, unsigned seed) {
        order_ = order;
        random_.seed(seed + 1);
    }
    std::minstd_rand& random() { return random_; }

private:
    static void thread_main(void* argument);
    void start_threads();
    void returned(Lane& me);
    void release_barrier();
    Lane& next(unsigned warp);
    unsigned choose(unsigned candidates);
    [[noreturn]] void deadlock();

    std::vector<std::unique_ptr<Lane>> lanes_;
    std::array<Warp, 32> warps_;
    unsigned threads_ = 0;
    unsigned live_ = 0;
    unsigned ready_warps_ = 0;
    std::function<void()> const* body_ = nullptr;
    Fiber host_;

    // The barrier that threads wait at.
    unsigned waiting_ = 0;
    Barrier kind_ = Barrier::Plain;
    Place place_;
    unsigned count_ = 0;
    int result_ = 0;

    Order order_ = Order::Forward;
    std::minstd_rand random_;
    // For the thread sanitizer: blocks follow each other, threads of one do not.
    std::array<char, 2> block_end_{};
    unsigned parity_ = 0;
    // Two, in turns: who comes to the next barrier is not ahead of who has not left this one yet.
    std::array<char, 2> barrier_order_{};
    unsigned barrier_round_ = 0;
};

/// The process's only one.
Block& block();

/// Ends the meetings of a warp that wait for no further lane.
void finish_meetings(Block& block, unsigned warp);

/// Two places in the source are the same.
bool same(Place const& one, Place const& other);

}  // namespace cudaemu
