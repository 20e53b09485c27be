// Subscribes, and prints each event as it comes: a line each, or a screen that is drawn anew.
#include <algorithm>
#include <deque>

#include <fmt/format.h>

#include "cli/commands/all.h"
#include "cli/render/json.h"
#include "cli/render/notices.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFrame{250};   // 4 Hz
constexpr milliseconds kRetry{1000};  // Between two attempts to find the sidecar again.
constexpr std::size_t kEventsKept = 200;

class Watch {
public:
    Watch(Context const& context, std::uint64_t count, bool lines)
        : context_(context),
          environment_(context.environment),
          count_(count),
          on_screen_(environment_.out_is_terminal && !context.globals.json && !lines),
          interrupted_(environment_.catch_interrupts()) {}

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
        screen_.status = DKV_TRY(controller.status());
        screen_.instances = DKV_TRY(controller.instances());
        screen_.sessions = DKV_TRY(controller.sessions(0));
        paint();
        return {};
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
};

}  // namespace

Run setup_watch(CLI::App& app, Context const& context) {
    struct WatchOptions {
        std::uint64_t count = 0;
        bool lines = false;
    };
    auto options = std::make_shared<WatchOptions>();
    app.add_option("--count", options->count, "end after N events; 0: never")->type_name("N");
    app.add_flag("--lines", options->lines, "a line per event on a terminal too");
    return [&context, options] { return Watch(context, options->count, options->lines).run(); };
}

}  // namespace dkv::cli
