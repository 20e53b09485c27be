// One engine's worker: a thread, a backend and a queue of work, done in order.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "kernels/backend.h"

namespace dkv {

class Strand {
public:
    using Work = std::function<void(Backend&)>;
    /// The backend is made, used and destroyed by the strand's own thread. Throws
    /// std::system_error when the system gives no thread.
    explicit Strand(std::function<std::unique_ptr<Backend>()> make_backend);
    Strand(Strand const&) = delete;
    Strand& operator=(Strand const&) = delete;
    /// Stops, and waits for the work that is under way.
    ~Strand();

    /// Not after stop().
    void post(Work work);
    std::size_t queued() const;

    /// What is queued is dropped, unrun, by the strand's thread after the work under way. Does not
    /// wait.
    void stop();
    /// After stop(): everything that the strand held is gone; destroying it will not wait.
    bool finished() const;

private:
    void run(std::function<std::unique_ptr<Backend>()> const& make_backend);
    static void run(Work const& work, Backend& backend) noexcept;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Work> queue_;
    bool stopping_ = false;
    bool finished_ = false;
    std::thread thread_;  // Last: it uses the others from its first moment.
};

}  // namespace dkv
