#include "sidecar/session/strand.h"

#include <spdlog/spdlog.h>

#include "protocol/base/assert.h"
#include "protocol/base/without_throwing.h"

namespace dkv {

Strand::Strand(std::function<std::unique_ptr<Backend>()> make_backend)
    : thread_([this, make = std::move(make_backend)] { run(make); }) {}

Strand::~Strand() {
    stop();
    thread_.join();
}

void Strand::post(Work work) {
    {
        std::lock_guard const lock(mutex_);
        DKV_ASSERT(!stopping_);
        queue_.push_back(std::move(work));
    }
    changed_.notify_one();
}

std::size_t Strand::queued() const {
    std::lock_guard const lock(mutex_);
    return queue_.size();
}

void Strand::stop() {
    {
        std::lock_guard const lock(mutex_);
        stopping_ = true;
    }
    changed_.notify_one();
}

bool Strand::finished() const {
    std::lock_guard const lock(mutex_);
    return finished_;
}

/// Work ends its own errors. What still comes out of it had no memory to say so with.
void Strand::run(Work const& work, Backend& backend) noexcept {
    auto const done = without_throwing([&]() -> Result<void> {
        work(backend);
        return {};
    });
    if (!done) spdlog::critical("a worker's step is lost: {}", done.error().message);
}

void Strand::run(std::function<std::unique_ptr<Backend>()> const& make_backend) {
    {
        auto const backend = make_backend();
        std::unique_lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
            if (stopping_) break;
            Work work = std::move(queue_.front());
            queue_.pop_front();
            lock.unlock();
            run(work, *backend);
            work = nullptr;  // What it held goes before the lock is taken: unmapping takes time.
            lock.lock();
        }
        // Jobs in here hold memory of the backend, so they go first, and in this thread; what is
        // under way on a device still uses it, and its end is not reported.
        auto const dropped = std::exchange(queue_, {});
        lock.unlock();
        static_cast<void>(backend->synchronize());
    }
    std::lock_guard const lock(mutex_);
    finished_ = true;
}

}  // namespace dkv
