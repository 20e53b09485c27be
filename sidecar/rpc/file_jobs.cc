#include "sidecar/rpc/file_jobs.h"

#include <algorithm>

namespace dkv::rpc {

void FileJobs::Job::run(Backend& backend) {
    offline::Progress const progress{
        .advance =
            [this](std::size_t, std::uint64_t done, std::uint64_t total) {
                std::lock_guard const lock(mutex);
                facts.bytes_done = done;
                facts.bytes_total = total;
            },
        .stop = [this] { return stopped.load(); }};
    auto outcome = stopped ? Result<offline::CompactOutcome>(offline::interrupted())
                           : offline::compact(backend, request, progress);
    std::lock_guard const lock(mutex);
    facts.outcome = std::move(outcome);
}

bool FileJobs::Job::ended() const {
    std::lock_guard const lock(mutex);
    return facts.outcome.has_value();
}

FileJobs::~FileJobs() {
    for (auto const& [id, job] : jobs_)
        job->stopped = true;
}

Result<void> FileJobs::make_room() {
    if (jobs_.size() < jobs_max_) return {};
    auto const oldest =
        std::ranges::find_if(jobs_, [](auto const& entry) { return entry.second->ended(); });
    if (oldest == jobs_.end())
        return Error{ErrorCode::LimitExceeded,
                     std::to_string(jobs_max_) + " files are waiting, which is the limit"};
    jobs_.erase(oldest);
    return {};
}

Result<std::uint64_t> FileJobs::start(offline::CompactRequest request) {
    DKV_TRY(make_room());
    auto const job = std::make_shared<Job>();
    job->request = std::move(request);
    jobs_.emplace(++last_job_, job);
    if (strand_ == nullptr) strand_ = std::make_unique<Strand>(make_backend_);
    strand_->post([job](Backend& backend) { job->run(backend); });
    return last_job_;
}

Result<std::shared_ptr<FileJobs::Job>> FileJobs::find(std::uint64_t job) const {
    auto const found = jobs_.find(job);
    if (found == jobs_.end())
        return Error{ErrorCode::NotFound, "no file job has the number " + std::to_string(job)};
    return found->second;
}

Result<FileJobFacts> FileJobs::facts(std::uint64_t job) const {
    auto const found = DKV_TRY(find(job));
    std::lock_guard const lock(found->mutex);
    return found->facts;
}

Result<void> FileJobs::stop(std::uint64_t job) {
    auto const found = DKV_TRY(find(job));
    found->stopped = true;
    return {};
}

}  // namespace dkv::rpc
