#include "cli/saved/offline/compact.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <new>
#include <string>
#include <thread>

#include <system_error>

#include "cli/saved/offline/compaction.h"

namespace dkv::offline {
namespace {

namespace fs = std::filesystem;

unsigned cores() {
    return std::max(1U, std::thread::hardware_concurrency());
}

/// Prefixes the input's path unless the message has it, or the output's.
Error located(CompactRequest const& request, Error error) {
    if (error.message.starts_with(request.output.string())) return error;
    return naming(request.input, std::move(error));
}

Result<CompactOutcome> compact_with(Backend& backend,
                                    CompactRequest const& request,
                                    Progress const& progress,
                                    std::size_t file,
                                    unsigned threads) {
    if (progress.stopped()) return interrupted();
    try {
        auto outcome = Compaction(backend, request, progress, file, threads).run();
        if (!outcome) return located(request, outcome.error());
        return outcome;
    } catch (std::bad_alloc const&) {  // Other files may need less.
        return located(request, {ErrorCode::LimitExceeded, "not enough memory"});
    }
}

/// Two requests that would write the same file, or one that would write what another reads.
std::vector<std::optional<Error>> conflicts(std::span<CompactRequest const> requests) {
    std::error_code ignored;
    std::map<fs::path, std::size_t> inputs;
    for (std::size_t i = 0; i < requests.size(); ++i)
        inputs.emplace(fs::weakly_canonical(requests[i].input, ignored), i);
    std::map<fs::path, std::size_t> outputs;
    std::vector<std::optional<Error>> errors(requests.size());
    for (std::size_t i = 0; i < requests.size(); ++i) {
        auto const output = fs::weakly_canonical(requests[i].output, ignored);
        auto const [first, is_new] = outputs.emplace(output, i);
        auto const read = inputs.find(output);
        if (!is_new)
            errors[i] = Error{ErrorCode::InvalidArgument,
                              requests[i].input.string() + ": its output would be that of " +
                                  requests[first->second].input.string() + ", " +
                                  requests[i].output.string()};
        else if (read != inputs.end() && read->second != i)
            errors[i] = Error{ErrorCode::InvalidArgument,
                              requests[i].input.string() + ": its output " +
                                  requests[i].output.string() + " is another input"};
    }
    return errors;
}

}  // namespace

Result<CompactOutcome> compact(Backend& backend,
                               CompactRequest const& request,
                               Progress const& progress,
                               std::size_t file) {
    return compact_with(backend, request, progress, file, cores());
}

std::vector<Result<CompactOutcome>> compact_all(std::span<CompactRequest const> requests,
                                                unsigned jobs,
                                                Progress const& progress,
                                                Ended const& ended) {
    if (jobs == 0) jobs = cores();
    bool const alone = requests.size() <= 1;
    auto const errors = conflicts(requests);
    std::vector<Result<CompactOutcome>> outcomes(requests.size(), interrupted());
    std::atomic<std::size_t> next = 0;
    std::mutex ending;
    auto const work = [&] {
        auto const backend = make_cpu_backend(alone ? jobs : 1);
        for (std::size_t i = next++; i < requests.size(); i = next++) {
            outcomes[i] = errors[i]
                              ? Result<CompactOutcome>(*errors[i])
                              : compact_with(*backend, requests[i], progress, i, alone ? jobs : 1);
            std::lock_guard const lock(ending);
            if (ended) ended(i, outcomes[i]);
        }
    };
    std::vector<std::jthread> others;
    for (std::size_t thread = 1; thread < std::min<std::size_t>(jobs, requests.size()); ++thread)
        others.emplace_back(work);
    work();
    others.clear();
    return outcomes;
}

}  // namespace dkv::offline
