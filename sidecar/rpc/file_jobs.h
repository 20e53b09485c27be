// Saved caches that controllers want compacted: one after another, in a thread of their own.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "cli/saved/offline/compact.h"
#include "sidecar/session/strand.h"

namespace dkv::rpc {

/// What became of one so far.
struct FileJobFacts {
    std::uint64_t bytes_done = 0;
    std::uint64_t bytes_total = 0;
    std::optional<Result<offline::CompactOutcome>> outcome;  ///< Nothing: it is not at its end.
};

/// Belongs to the loop's thread. Its end stops what is under way, and waits for that.
class FileJobs {
public:
    FileJobs(std::uint32_t jobs_max, std::function<std::unique_ptr<Backend>()> make_backend)
        : jobs_max_(jobs_max), make_backend_(std::move(make_backend)) {}
    ~FileJobs();

    /// Those that ended longest ago are forgotten for new ones. Errors: LimitExceeded while none
    /// of them has.
    Result<std::uint64_t> start(offline::CompactRequest request);
    /// Errors: NotFound for one that never was, or is forgotten.
    Result<FileJobFacts> facts(std::uint64_t job) const;
    /// It ends with Cancelled at its next layer, or before it begins.
    Result<void> stop(std::uint64_t job);

private:
    struct Job {
        offline::CompactRequest request;
        std::atomic<bool> stopped = false;
        mutable std::mutex mutex;
        FileJobFacts facts;  ///< Under the mutex.

        void run(Backend& backend);
        bool ended() const;
    };
    Result<std::shared_ptr<Job>> find(std::uint64_t job) const;
    Result<void> make_room();

    std::uint32_t const jobs_max_;
    std::function<std::unique_ptr<Backend>()> const make_backend_;
    std::uint64_t last_job_ = 0;
    std::map<std::uint64_t, std::shared_ptr<Job>> jobs_;
    std::unique_ptr<Strand> strand_;  ///< Made with the first job: most sidecars never have one.
};

}  // namespace dkv::rpc
