#include "cli/render/trace.h"

#include <doctest/doctest.h>

#include "tests/cli/fakes.h"

using namespace dkv;
using namespace dkv::test;

namespace {

wire::SessionListT with_spans(std::uint64_t id) {
    wire::SessionListT list;
    list.sessions.push_back(some_session(id));
    auto& spans = list.sessions.back()->spans;
    spans.emplace_back(5'000'000, 250'000, -1, wire::Stage::Open);
    spans.emplace_back(5'250'000, 1'500'000, 0, wire::Stage::Score);
    return list;
}

}  // namespace

TEST_CASE("a trace has microseconds from the first span on, a name and a layer for each") {
    auto const json = cli::trace_json(*with_spans(7).sessions.front());

    auto const& events = json.at("traceEvents");
    REQUIRE(events.size() == 4);
    CHECK(events[0].at("args").at("name") == "dkvd, session 0x0000000000000007");
    CHECK(events[2].at("name") == "open");
    CHECK(events[2].at("ts") == 0.0);
    CHECK(events[2].at("dur") == 250.0);
    CHECK(events[2].at("args").empty());
    CHECK(events[3].at("name") == "score");
    CHECK(events[3].at("ts") == 250.0);
    CHECK(events[3].at("args").at("layer") == 0);
    CHECK(json.at("otherData").at("policy") == "dynamickv");
}

TEST_CASE("dkv trace asks for the one session, and says why there is nothing to see") {
    auto sidecar = FakeSidecar::running();
    sidecar.sessions = [] { return with_spans(7); };

    auto const ran = run_dkv({"trace", "0x7"}, sidecar);
    CHECK(ran.exit_code == 0);
    CHECK(sidecar.spans_asked_of == 7);
    CHECK(cli::Json::parse(ran.out).at("traceEvents").size() == 4);

    CHECK(run_dkv({"trace", "0x8"}, sidecar).err ==
          "dkv: no session 0x0000000000000008 is open or remembered: dkv sessions lists them\n");
    sidecar.sessions = [] {
        auto list = with_spans(7);
        list.sessions.front()->spans.clear();
        return list;
    };
    CHECK(contains(run_dkv({"trace", "0x7"}, sidecar).err, "has no spans: it is kept whole"));
    CHECK(run_dkv({"trace"}, sidecar).exit_code == 2);
}
