// How far work over files is: a line on a terminal that is drawn over itself.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <ostream>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/saved/offline/progress.h"

namespace dkv::cli {

struct ProgressFacts {
    std::size_t files = 0;
    std::size_t files_done = 0;
    std::uint64_t bytes = 0;
    std::uint64_t bytes_done = 0;
    double seconds = 0;  ///< Since the beginning.
};

/// "3/12 files  ████▌     42.1 %  1.2 GiB/s  12.5 s left", no longer than style.columns. Pure.
std::string progress_text(ProgressFacts const& facts, Style const& style);

/// Draws nothing where stderr is not a terminal. Gone when destroyed.
class ProgressBar {
public:
    /// `totals`: bytes of each file, as far as they are known.
    ProgressBar(Context const& context, std::vector<std::uint64_t> totals);
    ~ProgressBar();

    /// From any thread.
    void advance(std::size_t file, std::uint64_t done, std::uint64_t total);
    void ended(std::size_t file);
    /// Text on `out` (whole lines), above the bar.
    void print(std::ostream& out, std::string const& text);

private:
    using Clock = std::chrono::steady_clock;
    void draw(bool now);
    void erase();

    Environment const& environment_;
    Style style_;
    std::mutex mutex_;
    std::vector<std::uint64_t> totals_;
    std::vector<std::uint64_t> done_;
    std::size_t files_done_ = 0;
    Clock::time_point const begin_ = Clock::now();
    Clock::time_point drawn_at_ = {};
    bool drawn_ = false;
};

/// The bar's advance(), and Ctrl-C as what stops the work.
offline::Progress progress_of(ProgressBar& bar, Context const& context);

}  // namespace dkv::cli
