// Subscribes, and prints each event as it comes: a line each, or a screen that is drawn anew.
#include <algorithm>
#include <deque>
#include <map>

#include <fmt/format.h>

#include "cli/commands/all.h"
#include "cli/render/json.h"
#include "cli/render/notices.h"
#include "cli/render/screen.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFrame{250};   // 4 Hz
constexpr milliseconds kRetry{1000};  // Between two attempts to find the sidecar again.
constexpr std::size_t kEventsKept = 200;
constexpr std::uint64_t kRateMs = 1000;
constexpr std::size_t kRowsOfOnce = 1000;
constexpr std::size_t kColumnsOfOnce = 200;

Result<void> fill(Screen& screen, sdk::Controller& controller) {
    screen.status = DKV_TRY(controller.status());
    screen.instances = DKV_TRY(controller.instances());
    screen.sessions = DKV_TRY(controller.sessions(0));
    return {};
}

class Watch {
public:
    Watch(Context const& context, std::uint64_t count, bool lines, SortKey sort)
        : context_(context),
          environment_(context.environment),
          count_(count),
          on_screen_(environment_.out_is_terminal && !context.globals.json && !lines),
          interrupted_(environment_.catch_interrupts()) {
        screen_.sort = sort;
    }

    /// Errors: what connecting the first time failed with, but Unavailable and DeadlineExceeded,
    /// which are waited out; VersionMismatch at any time: waiting cannot cure it.
    Result<Output> run() {
        if (on_screen_) write("\x1b[?1049h\x1b[?25l");  // Another screen, no cursor.
        auto const ended = loop();
        if (on_screen_) write("\x1b[?25h\x1b[?1049l");
        DKV_TRY(ended);
        return Output{};
    }

private:
    void write(std::string_view text) {
        environment_.out->write(text.data(), static_cast<std::streamsize>(text.size()));
        environment_.out->flush();
    }

    bool over() const { return interrupted_() || (count_ > 0 && seen_ >= count_); }

    Result<void> loop() {
        while (!over()) {
            auto const lost = follow();
            if (over()) break;
            if (lost.code == ErrorCode::VersionMismatch || !is_retryable(lost.code)) return lost;
            tell_lost(lost);
            environment_.pause(kRetry);
        }
        return {};
    }

    /// Until it is over, or the sidecar is gone: then why.
    Error follow() {
        auto const result = [&]() -> Result<void> {
            auto const controller = DKV_TRY(context_.connect());
            DKV_TRY(controller->subscribe());
            tell_found();
            while (!over()) {
                if (on_screen_) DKV_TRY(draw(*controller));
                DKV_TRY(take_events(*controller));
            }
            return {};
        }();
        return result ? Error{ErrorCode::Unavailable, ""} : result.error();
    }

    /// At least one wait of a frame; then everything that has already arrived.
    Result<void> take_events(sdk::Controller& controller) {
        milliseconds wait = kFrame;
        while (!over()) {
            auto const notice = DKV_TRY(controller.next_notice(wait));
            if (!notice) return {};
            ++seen_;
            show(*notice);
            wait = milliseconds(0);
        }
        return {};
    }

    void show(wire::NoticeT const& notice) {
        if (context_.globals.json) {
            write(to_json(notice).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
        } else if (!on_screen_) {
            write(notice_line(notice, context_.style()) + "\n");
        } else {
            Style plain = context_.style();
            plain.color = false;
            screen_.events.push_back(notice_line(notice, plain));
            if (screen_.events.size() > kEventsKept) screen_.events.pop_front();
        }
    }

    Result<void> draw(sdk::Controller& controller) {
        DKV_TRY(fill(screen_, controller));
        remember_totals();
        paint();
        return {};
    }

    /// Rates are over one to two seconds.
    void remember_totals() {
        auto const now = totals_of(screen_.status);
        bool const restarted = !marks_.empty() && now.uptime_ms < marks_.back().uptime_ms;
        if (restarted) marks_.clear();
        if (marks_.empty() || now.uptime_ms - marks_.back().uptime_ms >= kRateMs)
            marks_.push_back(now);
        if (marks_.size() > 2) marks_.pop_front();
        screen_.before.reset();
        if (now.uptime_ms - marks_.front().uptime_ms >= kRateMs) screen_.before = marks_.front();
    }

    void paint() {
        // Each line clears its own rest: redrawing in place does not flicker.
        std::string frame = "\x1b[H";
        for (char const c : screen_text(screen_, context_.style()))
            frame += c == '\n' ? std::string("\x1b[K\n") : std::string(1, c);
        write(frame + "\x1b[J");
    }

    void tell_found() {
        bool const again = !screen_.error.empty();
        screen_.error.clear();
        if (again && !on_screen_)
            *environment_.err << "dkv watch: the sidecar is back" << std::endl;
    }

    /// Once per loss, not once per attempt.
    void tell_lost(Error const& lost) {
        bool const known = !screen_.error.empty();
        screen_.error = lost.message;
        if (on_screen_)
            paint();
        else if (!known)
            *environment_.err << "dkv watch: " << one_line(lost.message) << "; trying again"
                              << std::endl;
    }

    Context const& context_;
    Environment const& environment_;
    std::uint64_t count_;
    bool on_screen_;
    std::function<bool()> interrupted_;
    std::uint64_t seen_ = 0;
    Screen screen_;
    std::deque<Screen::Totals> marks_;
};

/// The screen once, as a script or a bug report wants it.
Result<Output> look_once(Context const& context, SortKey sort) {
    auto const controller = DKV_TRY(context.connect());
    Screen screen;
    screen.sort = sort;
    DKV_TRY(fill(screen, *controller));
    Style style = context.style();
    style.rows = kRowsOfOnce;
    if (!context.environment.out_is_terminal) style.columns = kColumnsOfOnce;
    auto text = screen_text(screen, style);
    while (text.ends_with("\n\n"))
        text.pop_back();
    return Output{std::move(text),
                  {{"sidecar", to_json(screen.status)},
                   {"instances", to_json(screen.instances.instances)},
                   {"sessions", to_json(screen.sessions.sessions)}}};
}

}  // namespace

Run setup_watch(CLI::App& app, Context const& context) {
    struct WatchOptions {
        std::uint64_t count = 0;
        bool lines = false;
        bool once = false;
        SortKey sort = SortKey::Age;
    };
    auto options = std::make_shared<WatchOptions>();
    app.add_option("--count", options->count, "end after N events; 0: never")->type_name("N");
    app.add_flag("--lines", options->lines, "a line per event on a terminal too");
    app.add_flag("--once", options->once, "print the screen once, and end")
        ->excludes("--count")
        ->excludes("--lines");
    std::map<std::string, SortKey> const keys{{"age", SortKey::Age},
                                              {"tokens", SortKey::Tokens},
                                              {"bytes", SortKey::Bytes},
                                              {"peak", SortKey::Peak},
                                              {"busy", SortKey::Busy}};
    app.add_option_function<std::string>(
           "--sort", [options, keys](std::string const& word) { options->sort = keys.at(word); },
           "engines and sessions by this, the largest first; age: the newest session last [age]")
        ->check(CLI::IsMember(keys))
        ->type_name("KEY");
    return [&context, options] {
        if (options->once) return look_once(context, options->sort);
        return Watch(context, options->count, options->lines, options->sort).run();
    };
}

}  // namespace dkv::cli
