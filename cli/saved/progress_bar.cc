#include "cli/saved/progress_bar.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "cli/render/text.h"

namespace dkv::cli {
namespace {

constexpr std::size_t kProgressColumns = 24;
constexpr std::chrono::milliseconds kRedraw{100};
/// Before that the speed is unknown.
constexpr double kSpeedAfterSeconds = 0.5;

}  // namespace

std::string progress_text(ProgressFacts const& facts, Style const& style) {
    double const share = facts.bytes == 0 ? 0
                                          : std::min(1.0, static_cast<double>(facts.bytes_done) /
                                                              static_cast<double>(facts.bytes));
    std::string text;
    if (facts.files > 1) text = fmt::format("{}/{} files  ", facts.files_done, facts.files);
    text += fmt::format("{} {:>7}", bar(share, kProgressColumns, style), human_share(share));
    if (facts.seconds >= kSpeedAfterSeconds && facts.bytes_done > 0) {
        double const speed = static_cast<double>(facts.bytes_done) / facts.seconds;
        auto const left =
            static_cast<double>(facts.bytes - std::min(facts.bytes, facts.bytes_done)) / speed;
        text += fmt::format("  {}/s  {} left", human_bytes(static_cast<std::uint64_t>(speed)),
                            human_duration(static_cast<std::uint64_t>(left * 1000)));
    }
    return shortened(text, style.columns - 1, style);
}

ProgressBar::ProgressBar(Context const& context, std::vector<std::uint64_t> totals)
    : environment_(context.environment),
      style_(context.style()),
      totals_(std::move(totals)),
      done_(totals_.size()) {}

ProgressBar::~ProgressBar() {
    erase();
}

void ProgressBar::advance(std::size_t file, std::uint64_t done, std::uint64_t total) {
    std::lock_guard const lock(mutex_);
    totals_[file] = total;
    done_[file] = std::min(done, total);
    draw(false);
}

void ProgressBar::ended(std::size_t file) {
    std::lock_guard const lock(mutex_);
    ++files_done_;
    done_[file] = totals_[file];
    draw(true);
}

void ProgressBar::print(std::ostream& out, std::string const& text) {
    std::lock_guard const lock(mutex_);
    erase();
    out << text;
    out.flush();
    draw(true);
}

void ProgressBar::draw(bool now) {
    if (!environment_.err_is_terminal || totals_.empty()) return;
    auto const time = Clock::now();
    if (!now && time - drawn_at_ < kRedraw) return;
    ProgressFacts const facts{
        .files = totals_.size(),
        .files_done = files_done_,
        .bytes = std::accumulate(totals_.begin(), totals_.end(), std::uint64_t{0}),
        .bytes_done = std::accumulate(done_.begin(), done_.end(), std::uint64_t{0}),
        .seconds = std::chrono::duration<double>(time - begin_).count()};
    *environment_.err << "\r" << progress_text(facts, style_) << "\x1b[K";
    environment_.err->flush();
    drawn_at_ = time;
    drawn_ = true;
}

void ProgressBar::erase() {
    if (!drawn_) return;
    *environment_.err << "\r\x1b[K";
    environment_.err->flush();
    drawn_ = false;
}

offline::Progress progress_of(ProgressBar& bar, Context const& context) {
    return {.advance = [&bar](std::size_t file, std::uint64_t done,
                              std::uint64_t total) { bar.advance(file, done, total); },
            .stop = context.environment.catch_interrupts()};
}

}  // namespace dkv::cli
