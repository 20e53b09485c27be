// Several files through one piece of work: a line for each as it ends, a bar, a total.
#pragma once

#include <functional>
#include <vector>

#include "cli/command.h"
#include "cli/render/compact.h"
#include "cli/saved/progress_bar.h"

namespace dkv::cli {

using Outcome = Result<offline::CompactOutcome>;

/// Prints what ends while it runs, and makes the command's output of it all.
class Batch {
public:
    /// `sizes`: bytes of each file.
    Batch(Context const& context, std::vector<std::uint64_t> sizes, bool dry_run);

    offline::Progress progress() { return progress_of(bar_, context_); }
    /// From any thread, never twice at once.
    void ended(std::size_t file, std::filesystem::path const& input, Outcome const& outcome);

    /// A single file's failure is the command's; else failures have been printed and counted.
    Result<Output> output(std::vector<Outcome> const& outcomes);

private:
    Context const& context_;
    bool const dry_run_;
    bool const single_;
    ProgressBar bar_;
    CompactTotal total_;
    Json files_ = Json::array();
    std::chrono::steady_clock::time_point const begin_ = std::chrono::steady_clock::now();
};

}  // namespace dkv::cli
