#include <cstdlib>
#include <ctime>

#include <doctest/doctest.h>

#include "cli/render/screen.h"
#include "tests/cli/fakes.h"

using namespace dkv;
using namespace dkv::test;

namespace {

/// Times are local; the tests' clock is UTC.
void use_utc() {
    ::setenv("TZ", "UTC", 1);
    ::tzset();
}

wire::NoticeT notice(std::string kind, std::string text) {
    wire::NoticeT notice;
    notice.kind = std::move(kind);
    notice.at_ms = 1'700'000'000'250;
    notice.instance = 0xfeedbeef;
    notice.session = 7;
    notice.text = std::move(text);
    return notice;
}

}  // namespace

TEST_CASE("dkv watch prints a line per event where there is no terminal, and ends after --count") {
    use_utc();
    auto sidecar = FakeSidecar::running();
    sidecar.notices.emplace_back(notice("session_opened", "3584 tokens"));
    sidecar.notices.emplace_back(notice("session_committed", "kept 512 of 3584"));
    sidecar.notices.emplace_back(notice("session_closed", "never shown"));

    auto const ran = run_dkv({"watch", "--count", "2"}, sidecar);

    CHECK(ran.exit_code == 0);
    CHECK(ran.err.empty());
    CHECK(ran.out ==
          "22:13:20.250  session_opened     0x0000000000000007  3584 tokens\n"
          "22:13:20.250  session_committed  0x0000000000000007  kept 512 of 3584\n");
}

TEST_CASE("dkv watch --json prints one object per line") {
    auto sidecar = FakeSidecar::running();
    sidecar.notices.emplace_back(notice("session_opened", "3584 tokens"));
    sidecar.notices.back().value().detail = some_session(7);

    auto const ran = run_dkv({"watch", "--count", "1", "--json"}, sidecar);

    CHECK(std::count(ran.out.begin(), ran.out.end(), '\n') == 1);
    auto const json = cli::Json::parse(ran.out);
    CHECK(json.at("kind") == "session_opened");
    CHECK(json.at("session") == "0x0000000000000007");
    CHECK(json.at("detail").at("prompt_tokens") == 3584);
}

TEST_CASE(
    "dkv watch says once that the sidecar went away, keeps trying, and says that it is back") {
    auto sidecar = FakeSidecar::running();
    sidecar.notices.emplace_back(notice("session_opened", "first"));
    sidecar.notices.emplace_back(Error{ErrorCode::Unavailable, "the sidecar went away"});
    int pauses = 0;

    auto const ran =
        run_dkv({"watch", "--count", "2"}, sidecar, [&](cli::Environment& environment) {
            environment.pause = [&](std::chrono::milliseconds) {
                ++pauses;
                if (pauses < 3) {
                    sidecar.fail = Error{ErrorCode::Unavailable, "unasked listens"};
                } else {
                    sidecar.fail.reset();
                    sidecar.notices.emplace_back(notice("session_opened", "second"));
                }
            };
        });

    CHECK(ran.exit_code == 0);
    CHECK(pauses == 3);
    CHECK(sidecar.connects == 4);
    CHECK(ran.err ==
          "dkv watch: the sidecar went away; trying again\ndkv watch: the sidecar is back\n");
    CHECK(ran.out.find("second") != std::string::npos);
}

TEST_CASE("dkv watch ends with 0 at Ctrl-C, and with 4 beside a sidecar of another version") {
    auto sidecar = FakeSidecar::running();
    CHECK(run_dkv({"watch"}, sidecar, [](cli::Environment& environment) {
              environment.catch_interrupts = [] {
                  return [asked = 0]() mutable { return ++asked > 5; };
              };
          }).exit_code == 0);

    sidecar.fail = Error{ErrorCode::VersionMismatch, "it speaks 2, not 1"};
    auto const ran = run_dkv({"watch"}, sidecar);
    CHECK(ran.exit_code == 4);
    CHECK(ran.err == "dkv: it speaks 2, not 1\n");
}

TEST_CASE("dkv watch on a terminal redraws a screen and leaves the terminal as it was") {
    auto sidecar = FakeSidecar::running();
    sidecar.notices.emplace_back(notice("session_opened", "3584 tokens"));

    auto const ran = run_dkv({"watch", "--count", "1"}, sidecar, [](cli::Environment& environment) {
        environment.out_is_terminal = true;
    });

    CHECK(ran.out.starts_with("\x1b[?1049h\x1b[?25l\x1b[H"));
    CHECK(ran.out.ends_with("\x1b[?25h\x1b[?1049l"));
    CHECK(ran.out.find("no engine is attached\x1b[K\n") != std::string::npos);
}

TEST_CASE("the screen of dkv watch fits its terminal, and shows the latest events") {
    use_utc();
    cli::Screen screen;
    screen.status.version = "7.8.9";
    screen.sessions.sessions.push_back(some_session(1));
    screen.sessions.sessions.back()->state = wire::SessionState::Prefill;
    screen.sessions.sessions.back()->layers_done = 1;
    for (int event = 0; event < 100; ++event)
        screen.events.push_back("event " + std::to_string(event));
    cli::Style const style{.color = false, .unicode = false, .columns = 90, .rows = 12};

    auto const text = cli::screen_text(screen, style);

    CHECK(text ==
          "dkvd 7.8.9  pid 0  up 0 ms  0 engines  0 open sessions  0 B mapped\n"
          "policy   -\n"
          "savings  none yet: no session has finished\n"
          "\n"
          "no engine is attached\n"
          "\n"
          "0x0000000000000001  prefill      3584 tokens  dynamickv 512     [##########          ] "
          "ke~\n"
          "\n"
          "event 97\n"
          "event 98\n"
          "event 99\n");
}

TEST_CASE("dkv watch --once prints the screen without a terminal's codes, the largest peak first") {
    auto sidecar = FakeSidecar::running();
    sidecar.sessions = [] {
        wire::SessionListT list;
        for (std::uint64_t id = 1; id <= 3; ++id) {
            list.sessions.push_back(some_session(id));
            list.sessions.back()->bytes_peak = id == 2 ? 900 : id;
        }
        return list;
    };

    auto const ran = run_dkv({"watch", "--once", "--sort", "peak"}, sidecar);

    CHECK(ran.exit_code == 0);
    CHECK(!contains(ran.out, "\x1b"));
    CHECK(!ran.out.ends_with("\n\n"));
    auto const at = [&](char const* id) { return ran.out.find(id); };
    CHECK(at("0x0000000000000002") < at("0x0000000000000003"));
    CHECK(at("0x0000000000000003") < at("0x0000000000000001"));
    auto const json = cli::Json::parse(run_dkv({"watch", "--once", "--json"}, sidecar).out);
    CHECK(json.at("sessions").size() == 3);
    CHECK(run_dkv({"watch", "--once", "--lines"}, sidecar).exit_code == 2);
    CHECK(run_dkv({"watch", "--sort", "name"}, sidecar).exit_code == 2);
}

TEST_CASE("the screen follows its window, and shows rates once there is a second to look back on") {
    cli::Screen screen;
    screen.status.savings = std::make_unique<wire::SavingsT>(some_savings());
    screen.status.uptime_ms = 12'000;
    cli::Style const style{.color = false, .unicode = false, .columns = 120, .rows = 30};
    CHECK(!contains(cli::screen_text(screen, style), "rates"));

    screen.before =
        cli::Screen::Totals{.uptime_ms = 10'000,
                            .sessions = 9,
                            .bytes_dropped = screen.status.savings->bytes_dropped - 4096,
                            .bytes_back = screen.status.savings->bytes_returned - 2048};
    CHECK(contains(cli::screen_text(screen, style),
                   "rates    1.5 sessions/s, 2.0 KiB/s dropped, 1.0 KiB/s given back\n"));

    auto sidecar = FakeSidecar::running();
    int looks = 0;
    auto const ran = run_dkv({"watch"}, sidecar, [&](cli::Environment& environment) {
        environment.out_is_terminal = true;
        environment.style_now = [&] {
            return cli::Style{.columns = ++looks < 4 ? 80U : 20U, .rows = 24};
        };
        environment.catch_interrupts = [] {
            return [asked = 0]() mutable { return ++asked > 12; };
        };
    });
    CHECK(contains(ran.out, "dkvd 7.8.9  pid 99  up"));
    CHECK(contains(ran.out, "dkvd 7.8.9  pid 99 ~"));
}
