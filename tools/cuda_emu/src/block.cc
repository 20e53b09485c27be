#include "tools/cuda_emu/src/block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cudaemu {

Thread* self = nullptr;

Block& block() {
    static Block& the_block = *new Block;  // Fibers may outlive main.
    return the_block;
}

bool same(Place const& one, Place const& other) {
    return one.line() == other.line() && one.column() == other.column() &&
           (one.file_name() == other.file_name() ||
            std::strcmp(one.file_name(), other.file_name()) == 0);
}

void Block::thread_main(void* argument) {
    Lane& me = *static_cast<Lane*>(argument);
    Block& all = block();
    while (true) {
        acquire(&all.block_end_[all.parity_ ^ 1U]);
        (*all.body_)();
        release(&all.block_end_[all.parity_]);
        all.returned(me);
    }
}

void Block::start_threads() {
    threads_ = blockDim.x * blockDim.y * blockDim.z;
    while (lanes_.size() < threads_) {
        auto const linear = static_cast<unsigned>(lanes_.size());
        auto& lane = *lanes_.emplace_back(std::make_unique<Lane>());
        lane.linear = linear;
        lane.lane = linear % kLanes;
        lane.warp = linear / kLanes;
        make_fiber(lane.fiber, linear, thread_main, &lane);
    }
    for (unsigned i = 0; i < threads_; ++i) {
        Lane& lane = *lanes_[i];
        lane.tid = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
        lane.state = State::Ready;
        lane.doing = "not yet at any intrinsic";
        lane.place = Place();
        lane.copies.clear();
        lane.groups.clear();
    }
    for (unsigned w = 0; w < warps_.size(); ++w) {
        unsigned const first = w * kLanes;
        unsigned const count = threads_ > first ? std::min(threads_ - first, kLanes) : 0;
        warps_[w].live = count == 0 ? 0 : ~0U >> (kLanes - count);
        warps_[w].ready = 0;
        warps_[w].at_barrier = 0;
        make_ready(w, warps_[w].live);
    }
    live_ = threads_;
    waiting_ = 0;
    count_ = 0;
}

void Block::run(uint3 index, std::function<void()> const& body) {
    blockIdx = index;
    body_ = &body;
    parity_ ^= 1U;
    start_threads();
    adopt_host(host_);
    release(&block_end_[parity_ ^ 1U]);
    Lane& first = next(0);
    self = &first;
    threadIdx = first.tid;
    switch_fiber(host_, first.fiber);
    acquire(&block_end_[parity_]);
    self = nullptr;
}

unsigned Block::choose(unsigned candidates) {
    switch (order_) {
        case Order::Forward: break;
        case Order::Reverse: return 31U - static_cast<unsigned>(std::countl_zero(candidates));
        case Order::Shuffle:
            for (auto skip = random_() % static_cast<unsigned>(std::popcount(candidates)); skip > 0;
                 --skip)
                candidates &= candidates - 1;
            break;
    }
    return static_cast<unsigned>(std::countr_zero(candidates));
}

Lane& Block::next(unsigned warp) {
    if (warps_[warp].ready == 0) {
        if (ready_warps_ == 0) deadlock();
        warp = choose(ready_warps_);
    }
    Warp& chosen = warps_[warp];
    unsigned const index = choose(chosen.ready);
    chosen.ready &= ~(1U << index);
    if (chosen.ready == 0) ready_warps_ &= ~(1U << warp);
    Lane& result = lane(warp, index);
    result.state = State::Ready;
    return result;
}

void Block::yield(Lane& me) {
    Lane& other = next(me.warp);
    if (&other == &me) return;
    self = &other;
    threadIdx = other.tid;
    switch_fiber(me.fiber, other.fiber);
}

void Block::returned(Lane& me) {
    me.state = State::Returned;
    warps_[me.warp].live &= ~(1U << me.lane);
    --live_;
    if (live_ == 0) {
        switch_fiber(me.fiber, host_);
        return;
    }
    if (waiting_ == live_) release_barrier();
    finish_meetings(*this, me.warp);
    Lane& other = next(me.warp);
    self = &other;
    threadIdx = other.tid;
    switch_fiber(me.fiber, other.fiber);
}

void Block::release_barrier() {
    switch (kind_) {
        case Barrier::Plain: result_ = 0; break;
        case Barrier::Count: result_ = static_cast<int>(count_); break;
        case Barrier::And: result_ = count_ == waiting_ ? 1 : 0; break;
        case Barrier::Or: result_ = count_ != 0 ? 1 : 0; break;
    }
    waiting_ = 0;
    count_ = 0;
    barrier_round_ ^= 1U;
    for (unsigned w = 0; w < warps_.size(); ++w) {
        make_ready(w, warps_[w].at_barrier);
        warps_[w].at_barrier = 0;
    }
}

int Block::barrier(Barrier kind, bool predicate, Place place) {
    Lane& me = current();
    me.place = place;
    me.doing = "__syncthreads";
    if (waiting_ == 0) {
        kind_ = kind;
        place_ = place;
    } else if (kind != kind_ || !same(place, place_)) {
        std::fprintf(stderr, "cudaemu: other threads of the block wait at %s:%u\n",
                     place_.file_name(), place_.line());
        fail("barrier divergence: __syncthreads reached at different places");
    }
    count_ += predicate ? 1U : 0U;
    ++waiting_;
    me.state = State::AtBarrier;
    warps_[me.warp].at_barrier |= 1U << me.lane;
    char* const order = &barrier_order_[barrier_round_];
    release(order);
    if (waiting_ == live_) release_barrier();
    yield(me);
    acquire(order);
    return result_;
}

int block_barrier(Barrier kind, bool predicate, Place place) {
    return block().barrier(kind, predicate, place);
}

void pause(Place place) {
    Block& all = block();
    Lane& me = all.current();
    me.place = place;
    me.doing = "__nanosleep";
    all.make_ready(me.warp, 1U << me.lane);
    all.yield(me);
}

}  // namespace cudaemu
