// Threads for one backend.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <hwy/aligned_allocator.h>
#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#include <oneapi/tbb/task_arena.h>

#include "kernels/cpu/task_order.h"

namespace dkv::cpu {

class Workers {
public:
    /// 0: every core. More than there are cores would only wait for each other.
    explicit Workers(unsigned threads) : arena_(limit(threads)) {}

    std::size_t count() const noexcept {
        return static_cast<std::size_t>(arena_.max_concurrency());
    }

    /// Memory for one op, aligned to 64 bytes, whatever the last op left there; null when there is
    /// not enough. It is kept, since the system gives new pages no faster than a core fills them.
    float* memory(std::size_t floats) {
        if (floats > memory_floats_) {
            memory_.reset();
            memory_ = hwy::AllocateAligned<float>(floats);
            memory_floats_ = memory_ ? floats : 0;
        }
        return memory_.get();
    }

    /// Once `cancelled` is set, for_each() leaves the rest of its items out; nullptr: never.
    void cancel_by(std::atomic<bool> const* cancelled) noexcept { cancelled_ = cancelled; }
    bool cancelled() const noexcept { return cancelled_ != nullptr && *cancelled_; }

    /// Calls body(item, worker) once for each item below `items`, with worker < count(); calls with
    /// the same worker never overlap. Which worker takes an item changes from run to run: what a
    /// body computes must not depend on it.
    template <class Body>
    void for_each(std::size_t items, Body const& body) {
        if (count() == 1 || items <= 1) {
            for (std::size_t item = 0; item < items && !cancelled(); ++item)
                body(item, std::size_t{0});
            return;
        }
        using Range = tbb::blocked_range<std::size_t>;
        auto const run = [&](Range const& range, std::size_t worker) {
            for (std::size_t item = range.begin(); item < range.end() && !cancelled(); ++item)
                body(item, worker);
        };
        TaskOrder order(count());  // Behind what tasks read.
        arena_.execute([&] {
            tbb::parallel_for(Range(0, items, 1), [&](Range const& range) DKV_TASK_ENTRY {
                auto const worker =
                    static_cast<std::size_t>(tbb::this_task_arena::current_thread_index());
                order.task_begins(worker);
                run(range, worker);
                order.task_ends(worker);
            });
        });
    }

private:
    static int limit(unsigned threads) {
        int const cores = tbb::info::default_concurrency();
        if (threads == 0 || threads > static_cast<unsigned>(cores)) return cores;
        return static_cast<int>(threads);
    }

    tbb::task_arena arena_;
    hwy::AlignedFreeUniquePtr<float[]> memory_;
    std::size_t memory_floats_ = 0;
    std::atomic<bool> const* cancelled_ = nullptr;
};

}  // namespace dkv::cpu
