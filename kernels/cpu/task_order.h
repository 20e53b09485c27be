// What the task library orders, told to the thread sanitizer: the library is not instrumented, so
// that the sanitizer sees tasks run in other threads and never sees them begin or end. No code
// elsewhere.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_THREAD__)
#include <memory>
#include <sanitizer/tsan_interface.h>
/// Of the function that the library calls: it reads the task's record, which another thread may
/// have written, before task_begins() says that this is in order.
#define DKV_TASK_ENTRY __attribute__((no_sanitize_thread))
#else
#define DKV_TASK_ENTRY
#endif

namespace dkv::cpu {

/// One for a loop of tasks. Tasks are ordered behind its beginning and before its end, and with
/// what the same worker did before; not with each other.
class TaskOrder {
public:
#if defined(__SANITIZE_THREAD__)
    explicit TaskOrder(std::size_t workers) : workers_(std::make_unique<char[]>(workers)) {
        __tsan_release(&begin_);
    }
    ~TaskOrder() {
        __tsan_acquire(&end_);
    }
    void task_begins(std::size_t worker) {
        __tsan_acquire(&begin_);
        __tsan_acquire(&workers_[worker]);
    }
    void task_ends(std::size_t worker) {
        __tsan_release(&workers_[worker]);
        __tsan_release(&end_);
    }

private:
    char begin_ = 0;
    char end_ = 0;
    std::unique_ptr<char[]> workers_;
#else
    explicit TaskOrder(std::size_t /*workers*/) {}
    ~TaskOrder() = default;
    void task_begins(std::size_t /*worker*/) {}
    void task_ends(std::size_t /*worker*/) {}
#endif
    TaskOrder(TaskOrder const&) = delete;
    TaskOrder& operator=(TaskOrder const&) = delete;
};

}  // namespace dkv::cpu
