// Threads for one backend.
#pragma once

#include <algorithm>
#include <cstddef>
#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/info.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#include <oneapi/tbb/task_arena.h>

namespace dkv::cpu {

class Workers {
public:
    /// 0: every core. More than there are cores would only wait for each other.
    explicit Workers(unsigned threads) : arena_(limit(threads)) {}

    std::size_t count() const noexcept {
        return static_cast<std::size_t>(arena_.max_concurrency());
    }

    /// Calls body(item, worker) once for each item below `items`, with worker < count(); calls with
    /// the same worker never overlap. Which worker takes an item changes from run to run: what a
    /// body computes must not depend on it.
    template <class Body>
    void for_each(std::size_t items, Body const& body) {
        if (count() == 1 || items <= 1) {
            for (std::size_t item = 0; item < items; ++item)
                body(item, std::size_t{0});
            return;
        }
        arena_.execute([&] {
            tbb::parallel_for(tbb::blocked_range<std::size_t>(0, items, 1),
                              [&](tbb::blocked_range<std::size_t> const& range) {
                                  auto const worker = static_cast<std::size_t>(
                                      tbb::this_task_arena::current_thread_index());
                                  for (std::size_t item = range.begin(); item < range.end(); ++item)
                                      body(item, worker);
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
};

}  // namespace dkv::cpu
