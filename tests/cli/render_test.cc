// Facts → text, as snapshots.
#include <limits>

#include <doctest/doctest.h>

#include "cli/render/instances.h"
#include "cli/render/policies.h"
#include "cli/render/savings.h"
#include "cli/render/sessions.h"
#include "cli/render/status.h"
#include "cli/render/table.h"
#include "cli/render/text.h"
#include "tests/cli/fakes.h"

using namespace dkv;
using namespace dkv::cli;
using namespace dkv::test;

namespace {

constexpr Style kPlain{.color = false, .unicode = true, .columns = 80, .rows = 24};

wire::InstanceListT engines() {
    wire::InstanceListT list;
    list.instances.push_back(some_instance(0xfeedbeef));
    return list;
}

std::size_t widest_line(std::string const& text) {
    std::size_t widest = 0;
    for (auto const& line : CLI::detail::split(text, '\n'))
        widest = std::max(widest, display_width(line));
    return widest;
}

}  // namespace

TEST_CASE("numbers read as people write them") {
    CHECK(human_bytes(0) == "0 B");
    CHECK(human_bytes(1023) == "1023 B");
    CHECK(human_bytes(1536) == "1.5 KiB");
    CHECK(human_bytes((1 << 20U) - 1) == "1.0 MiB");
    CHECK(human_bytes(1344ULL << 20U) == "1.31 GiB");
    CHECK(human_bytes(std::numeric_limits<std::uint64_t>::max()) == "16.00 EiB");
    CHECK(human_duration(999) == "999 ms");
    CHECK(human_duration(1480) == "1.4 s");
    CHECK(human_duration(200'000) == "3 min 20 s");
    CHECK(human_duration(7'500'000) == "2 h 5 min");
    CHECK(human_duration(90'000'000) == "1 d 1 h");
    CHECK(human_share(1, 0) == "-");
    CHECK(human_share(1, 8) == "12.5 %");
    CHECK(counted(1, "core") == "1 core");
    CHECK(hex_id(0xab) == "0x00000000000000ab");
}

TEST_CASE("foreign text cannot paint the terminal") {
    CHECK(one_line("a\x1b[31m\nb\x7f\xc2\x9b"
                   "é") == "a?[31m b??é");
}

TEST_CASE("text is cut and broken at columns, not at bytes") {
    CHECK(shortened("äöüß", 4, kPlain) == "äöüß");
    CHECK(shortened("äöüßx", 4, kPlain) == "äöü…");
    CHECK(wrapped("one two three", 7, 2) == "one two\n  three");
    CHECK(wrapped("longerthanthat x", 5, 0) == "longerthanthat\nx");
    CHECK(display_width(toned(Tone::Good, "alive", {.color = true})) == 5);
}

TEST_CASE("bars are exact to an eighth of a column, and plain where there is no UTF-8") {
    CHECK(bar(0.5, 4, kPlain) == "██  ");
    CHECK(bar(0.53125, 4, kPlain) == "██▏ ");
    CHECK(bar(1, 4, kPlain) == "████");
    CHECK(bar(7, 4, kPlain) == "████");
    CHECK(bar(-1, 4, kPlain) == "    ");
    CHECK(bar(std::numeric_limits<double>::quiet_NaN(), 2, kPlain) == "  ");
    CHECK(bar(0.5, 4, {.unicode = false}) == "##  ");
}

TEST_CASE("dkv status: a sidecar with an engine, errors and one that went away") {
    auto sidecar = FakeSidecar::running();
    auto& status = sidecar.status;
    status.instances = 1;
    status.sessions_open = 1;
    status.mapped_bytes = 512U << 20U;
    status.savings = std::make_unique<wire::SavingsT>(some_savings());
    status.errors_total = 3;
    status.last_error = "capacity 16 is below window 32";
    status.gone = {"0x00000000deadbeef pid 4711: killed, 2 regions dropped"};

    CHECK(status_text(status, engines(), kPlain) ==
          "sidecar   running: dkvd 7.8.9, protocol 1, pid 99, up 2 h 5 min\n"
          "endpoint  ipc:///run/user/7/dkv/dkvd.sock\n"
          "backend   cpu (avx2, 8 threads)\n"
          "policy    dynamickv capacity=512 window=32 kernel=7 pool=max reduce=mean\n"
          "          r_max=10 r_min=0.1 update_interval=4 sinks=4 (from: default)\n"
          "engines   1 attached, 512.0 MiB mapped\n"
          "sessions  1 open\n"
          "savings   1.12 GiB dropped, 1.11 GiB returned (measured), of 1.31 GiB in 12\n"
          "          sessions\n"
          "errors    3; the last: capacity 16 is below window 32\n"
          "gone      0x00000000deadbeef pid 4711: killed, 2 regions dropped\n"
          "\n"
          "INSTANCE             PID  MODEL            POLICY         OPEN     MAPPED\n"
          "0x00000000feedbeef  4242  SmolLM2-135M-I…  dynamickv 512     1  512.0 MiB\n");
}

TEST_CASE("dkv status: an idle sidecar says what to do next") {
    auto const sidecar = FakeSidecar::running();

    auto const text = status_text(sidecar.status, {}, kPlain);

    CHECK(text.find("savings   none yet: no session has finished\n") != std::string::npos);
    CHECK(text.find("errors    none\n") != std::string::npos);
    CHECK(
        text.ends_with("\nNo engine is attached. Start one with: python -m dkv.hf SCRIPT\n"
                       "(or dkv.hf.Cache(model) in your own code, or libdkv from C).\n"));
}

TEST_CASE("dkv instances: everything about an engine") {
    CHECK(instances_text(engines(), kPlain) ==
          "0x00000000feedbeef  pid 4242, alive, attached 3 min 20 s ago, last heard 400 ms ago\n"
          "  engine    transformers 5.23.0 on cpu\n"
          "  model     SmolLM2-135M-Instruct\n"
          "  geometry  30 layers, 9/3 heads, head_dim 64, f32\n"
          "  policy    dynamickv capacity=512 window=32 kernel=7 pool=max reduce=mean\n"
          "            r_max=10 r_min=0.1 update_interval=4 sinks=4 (from: default)\n"
          "  sessions  1 open, 12 in all, 1 failed\n"
          "  mapped    512.0 MiB in 3 regions\n"
          "  savings   1.12 GiB dropped, 1.11 GiB returned (measured), of 1.31 GiB\n");
    CHECK(instances_text({}, kPlain) == no_engine_text());
}

TEST_CASE("dkv sessions: a line of numbers, a line of bytes, a line for what went wrong") {
    wire::SessionListT list;
    list.sessions.push_back(some_session(1));
    list.sessions.push_back(some_session(2));
    auto& failed = *list.sessions.back();
    failed.state = wire::SessionState::Failed;
    failed.error = "keys reach past the region's 4096 bytes";
    failed.lengths.clear();
    failed.mass_kept.clear();
    failed.bytes_kept = failed.bytes_returned = failed.bytes_peak = failed.bytes_final = 0;

    CHECK(
        sessions_text(list, kPlain) ==
        "instance 0x00000000feedbeef\n"
        "SESSION             STATE    TOKENS  POLICY         KEPT min/mean/max    MASS      BUSY\n"
        "0x0000000000000001  adopted    3584  dynamickv 512        200/512/824  73.8 %  123.4 ms\n"
        "    full 112.0 MiB, kept 16.0 MiB, returned 95.0 MiB (measured), peak 64.0 MiB,\n"
        "    final 17.0 MiB\n"
        "0x0000000000000002  failed     3584  dynamickv 512                  -       -  123.4 ms\n"
        "    full 112.0 MiB, kept -, returned - (measured), peak -, final -\n"
        "    error: keys reach past the region's 4096 bytes\n");
    CHECK(sessions_text({}, kPlain).starts_with("No session yet"));
}

TEST_CASE("dkv sessions ID: the numbers, and bars of tokens and attention per layer") {
    CHECK(session_text(*some_session(1), kPlain) ==
          "session 0x0000000000000001\n"
          "  instance        0x00000000feedbeef\n"
          "  state           adopted, opened 1 min 5 s ago\n"
          "  policy          dynamickv capacity=512 window=32 kernel=7 pool=max reduce=mean\n"
          "                  r_max=10 r_min=0.1 update_interval=4 sinks=4\n"
          "  prompt          3584 tokens, 2 layers, 2 KV heads\n"
          "  kept            200/512/824 tokens per layer and KV head (min/mean/max)\n"
          "  attention kept  73.8 % (mean over layers)\n"
          "  full cache      112.0 MiB\n"
          "  dropped         96.0 MiB (85.7 % of full)\n"
          "  returned        95.0 MiB (84.8 % of full), measured by the engine\n"
          "  pool            -, blocks back in the engine's own pool\n"
          "  block table     86.0 MiB (76.8 % of full), what a host with one table for all\n"
          "                  layers would get\n"
          "  peak            64.0 MiB (57.1 % of full), largest during prefill\n"
          "  final           17.0 MiB (15.2 % of full)\n"
          "  sidecar busy    123.4 ms\n"
          "\n"
          "LAYER    TOKENS  KEPT PER KV HEAD            MASS\n"
          "    0       824  ████████████████████████   97.5 %  ███████████████████████▍\n"
          "    1       200  █████▉                     50.0 %  ████████████\n");
}

TEST_CASE("dkv sessions ID draws nothing from lengths that do not fit the geometry") {
    auto session = some_session(1);
    session->kv_heads = 0;
    CHECK(session_text(*session, kPlain).find("LAYER") == std::string::npos);
    session->kv_heads = 2;
    session->mass_kept = {0.5F};
    CHECK(session_text(*session, kPlain).find("MASS") == std::string::npos);
}

TEST_CASE("dkv savings keeps the four numbers apart") {
    wire::SavingsInfoT savings;
    savings.total = std::make_unique<wire::SavingsT>(some_savings());
    savings.instances.push_back(some_instance(0xfeedbeef));
    savings.sessions.push_back(some_session(1));

    CHECK(savings_text(savings, kPlain) ==
          "12 sessions, 1 failed, 43008 prompt tokens; the sidecar was busy for 1.4 s\n"
          "\n"
          "BYTES                  OF FULL  WHAT IT SAYS\n"
          "full caches  1.31 GiB  100.0 %  what all prompts would have taken\n"
          "dropped      1.12 GiB   85.7 %  rows not kept, over all layers: logical\n"
          "returned     1.11 GiB   84.8 %  what the system took back: measured\n"
          "pool              0 B    0.0 %  blocks back in engines' own pools: as they count\n"
          "block table  1.01 GiB   76.8 %  what one table for all layers would give\n"
          "\n"
          "Largest cache of one session during prefill: 64.0 MiB\n"
          "\n"
          "INSTANCE            SESSIONS      FULL   DROPPED  RETURNED  BLOCK TABLE      PEAK\n"
          "0x00000000feedbeef        12  1.31 GiB  1.12 GiB  1.11 GiB     1.01 GiB  64.0 MiB\n"
          "\n"
          "Sessions: peak during prefill beside what is left\n"
          "SESSION             POLICY              FULL      PEAK     FINAL   DROPPED  RETURNED\n"
          "0x0000000000000001  dynamickv 512  112.0 MiB  64.0 MiB  17.0 MiB  96.0 MiB  95.0 MiB\n"
          "\n"
          "Attention kept per layer, percent, mean of the sessions of 0x00000000feedbeef\n"
          "     0:   97.5   50.0\n");
    CHECK(savings_text({}, kPlain).starts_with("Nothing saved yet: no session has finished.\n"));
}

TEST_CASE("attention kept is averaged over the sessions that measured it") {
    wire::SavingsInfoT savings;
    savings.sessions.push_back(some_session(1));
    savings.sessions.push_back(some_session(2));
    savings.sessions.back()->mass_kept.clear();
    savings.sessions.push_back(some_session(3));
    savings.sessions.back()->mass_kept = {0.475F, 1.0F};

    auto const mass = mass_per_layer(savings, 0xfeedbeef);

    REQUIRE(mass.size() == 2);
    CHECK(mass[0] == doctest::Approx(0.725));
    CHECK(mass[1] == doctest::Approx(0.75));
    CHECK(mass_per_layer(savings, 1).empty());
}

TEST_CASE("dkv policy list marks the default and shows only what a policy uses") {
    auto const sidecar = FakeSidecar::running();

    CHECK(policy_list_text(sidecar.policies, kPlain) ==
          "  fullkv        keeps everything\n"
          "  streamingllm  first and last tokens\n"
          "                capacity=256 window=32 sinks=4\n"
          "* dynamickv     budgets per layer from the prompt's own attention\n"
          "                capacity=256 window=32 kernel=7 pool=max reduce=mean r_max=10\n"
          "                r_min=0.1 update_interval=4 sinks=4\n"
          "\n"
          "* new sessions get dynamickv capacity=512 window=32 kernel=7 pool=max\n"
          "  reduce=mean r_max=10 r_min=0.1 update_interval=4 sinks=4 (from: default)\n"
          "  dkv policy show NAME explains every parameter\n");
}

TEST_CASE("a policy in brief names its size as it was given") {
    auto policy = some_policy("snapkv", 512);
    CHECK(policy_brief(&policy) == "snapkv 512");
    policy.capacity.reset();
    CHECK(policy_brief(&policy) == "snapkv");
    policy.ratio = 0.25;
    CHECK(policy_brief(&policy) == "snapkv 25.0 %");
    policy.ratio.reset();
    policy.bytes = 512U << 20U;
    CHECK(policy_brief(&policy) == "snapkv 512.0 MiB");
    policy.bytes.reset();
    policy.keep_mass = 0.95;
    CHECK(policy_brief(&policy) == "snapkv mass 0.95");
    CHECK(policy_line(&policy).ends_with(" keep_mass=0.95"));
}

TEST_CASE("every parameter has words, a range, a source and at least one policy") {
    for (Parameter const& row : parameters()) {
        CAPTURE(row.name);
        CHECK_FALSE(row.brief.empty());
        CHECK_FALSE(row.what.empty());
        CHECK_FALSE(row.allowed().empty());
        CHECK_FALSE(row.source.empty());
        CHECK((uses("dynamickv", row) || uses("streamingllm", row) || uses("pyramidkv", row) ||
               uses("h2o", row) || uses("auto", row)));
        CHECK_FALSE(uses("fullkv", row));
        CHECK(uses("a policy of tomorrow", row));
    }
}

TEST_CASE("what dkv prints fits 100 columns, ids and all") {
    Style const wide{.color = false, .unicode = true, .columns = 100, .rows = 24};
    wire::SavingsInfoT savings;
    savings.total = std::make_unique<wire::SavingsT>(some_savings());
    savings.instances.push_back(some_instance(~0ULL));
    wire::SessionListT sessions;
    sessions.sessions.push_back(some_session(~0ULL));
    auto const running = FakeSidecar::running();

    CHECK(widest_line(status_text(running.status, engines(), wide)) <= 100);
    CHECK(widest_line(instances_text(engines(), wide)) <= 100);
    CHECK(widest_line(sessions_text(sessions, wide)) <= 100);
    CHECK(widest_line(session_text(*sessions.sessions[0], wide)) <= 100);
    CHECK(widest_line(savings_text(savings, wide)) <= 100);
    CHECK(widest_line(policy_list_text(running.policies, wide)) <= 100);
}

TEST_CASE("bytes in engines' own pools stand beside what was returned, and not in it") {
    auto savings = some_savings();
    CHECK(given_back(savings) == "1.11 GiB returned (measured)");
    savings.bytes_pool = 3U << 20U;
    CHECK(given_back(savings) == "1.11 GiB returned (measured), 3.0 MiB back in engines' pools");

    auto session = some_session(1);
    session->bytes_pool = 5U << 20U;
    CHECK(contains(session_text(*session, kPlain), "pool            5.0 MiB"));
}

TEST_CASE("status as CSV has a line for all engines and one for each, quoted where it must be") {
    auto running = FakeSidecar::running();
    auto list = engines();
    list.instances.front()->model = "a \"b\", c";

    CHECK(status_csv(running.status, list) ==
          "instance,pid,alive,engine,model,policy,sessions_open,mapped_bytes,sessions,"
          "sessions_failed,prompt_tokens,bytes_full,bytes_dropped,bytes_returned,bytes_pool,"
          "bytes_block_table,bytes_peak\n"
          "all,99,1,dkvd 7.8.9,,dynamickv,0,0,0,0,0,0,0,0,0,0,0\n"
          "0x00000000feedbeef,4242,1,transformers 5.23.0,\"a \"\"b\"\", c\",dynamickv,1,536870912,"
          "12,1,43008,1409286144,1207959552,1195376640,0,1082130432,67108864\n");
    auto sidecar = FakeSidecar::running();
    CHECK(run_dkv({"status", "--csv", "--json"}, sidecar).exit_code == 1);
}
