// Commands against a sidecar that answers.
#include <filesystem>

#include <doctest/doctest.h>

#include "protocol/base/version.h"
#include "tests/cli/fakes.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

FakeSidecar with_engine() {
    auto sidecar = FakeSidecar::running();
    sidecar.status.instances = 1;
    sidecar.instances = [] {
        wire::InstanceListT list;
        list.instances.push_back(some_instance(0xfeedbeef));
        return list;
    };
    sidecar.sessions = [] {
        wire::SessionListT list;
        list.sessions.push_back(some_session(1));
        list.sessions.push_back(some_session(0xabcd));
        return list;
    };
    return sidecar;
}

}  // namespace

TEST_CASE("dkv status --json gives exact numbers and ids as strings") {
    auto sidecar = with_engine();

    auto const ran = run_dkv({"status", "--json"}, sidecar);

    REQUIRE(ran.exit_code == 0);
    auto const json = Json::parse(ran.out);
    CHECK(json.at("sidecar").at("version") == "7.8.9");
    CHECK(json.at("sidecar").at("last_error").is_null());
    CHECK(json.at("instances").at(0).at("instance") == "0x00000000feedbeef");
    CHECK(json.at("instances").at(0).at("mapped_bytes") == 536870912);
    CHECK(json.at("instances").at(0).at("group").is_null());
    CHECK(json.at("instances").at(0).at("policy").at("capacity") == 512);
}

TEST_CASE("dkv --json replaces bytes that are no UTF-8 instead of failing") {
    auto sidecar = with_engine();
    sidecar.status.last_error = "bad \xff byte";

    auto const ran = run_dkv({"status", "--json"}, sidecar);

    CHECK(ran.exit_code == 0);
    CHECK(Json::parse(ran.out).at("sidecar").at("last_error") == "bad \xef\xbf\xbd byte");
}

TEST_CASE("dkv sessions ID shows one session, whichever way the id is written") {
    for (auto const* id : {"abcd", "0xabcd", "0xABCD", "0x000000000000abcd"}) {
        auto sidecar = with_engine();

        auto const ran = run_dkv({"sessions", id, "--json"}, sidecar);

        auto const sessions = Json::parse(ran.out).at("sessions");
        REQUIRE(sessions.size() == 1);
        CHECK(sessions.at(0).at("session") == "0x000000000000abcd");
        CHECK(sessions.at(0).at("lengths") == Json({824, 824, 200, 200}));
    }
}

TEST_CASE("dkv sessions with an id that unasked has exits 1 and names it") {
    auto sidecar = with_engine();

    auto const ran = run_dkv({"sessions", "77"}, sidecar);

    CHECK(ran.exit_code == 1);
    CHECK(ran.err ==
          "dkv: no session 0x0000000000000077 is open or remembered: dkv sessions lists them\n");
}

TEST_CASE("dkv sessions --instance asks for that engine only") {
    auto sidecar = with_engine();

    CHECK(run_dkv({"sessions", "--instance", "0xfeedbeef"}, sidecar).exit_code == 0);

    CHECK(sidecar.sessions_asked_of == 0xfeedbeef);
}

TEST_CASE("dkv policy set without --instance is for all, and says whom it reached") {
    auto sidecar = with_engine();

    auto const ran =
        run_dkv({"policy", "set", "snapkv", "--capacity", "256", "--pool", "avg"}, sidecar);

    REQUIRE(ran.exit_code == 0);
    REQUIRE(sidecar.set_policies.size() == 1);
    CHECK(sidecar.set_policies[0].instance == 0);
    REQUIRE(sidecar.set_policies[0].policy);
    auto const& policy = *sidecar.set_policies[0].policy;
    CHECK(policy.name == "snapkv");
    CHECK(policy.capacity == 256U);
    CHECK(policy.pool == wire::Pool::Avg);
    CHECK_FALSE(policy.window.has_value());
    CHECK(contains(ran.out,
                   "snapkv capacity=256 pool=avg holds from now on for new sessions of "
                   "every engine, present and future.\n"));
    CHECK(contains(ran.out, "0x00000000feedbeef  4242"));
}

TEST_CASE("dkv policy set for all says which engines keep a setting of their own") {
    auto sidecar = with_engine();
    sidecar.instances = [] {
        wire::InstanceListT list;
        list.instances.push_back(some_instance(0xfeedbeef));
        list.instances.push_back(some_instance(0xbeef));
        list.instances[1]->policy_source = "instance";
        return list;
    };

    auto const text = run_dkv({"policy", "set", "snapkv"}, sidecar);
    auto const json = run_dkv({"policy", "set", "snapkv", "--json"}, sidecar);

    CHECK(contains(text.out, "1 engine keeps a setting of its own"));
    auto const reached = Json::parse(json.out).at("reached");
    REQUIRE(reached.size() == 1);
    CHECK(reached.at(0).at("instance") == "0x00000000feedbeef");
}

TEST_CASE("dkv policy set --instance reaches that engine only") {
    auto sidecar = with_engine();

    auto const ran = run_dkv(
        {"policy", "set", "dynamickv", "--capacity", "512", "--instance", "feedbeef"}, sidecar);

    CHECK(ran.exit_code == 0);
    REQUIRE(sidecar.set_policies.size() == 1);
    CHECK(sidecar.set_policies[0].instance == 0xfeedbeef);
    CHECK(contains(ran.out, "for new sessions of engine 0x00000000feedbeef"));
}

TEST_CASE("dkv policy set with no engine says that the next one gets it") {
    auto sidecar = FakeSidecar::running();

    auto const ran = run_dkv({"policy", "set", "snapkv"}, sidecar);

    CHECK(contains(ran.out, "No engine is attached; the next one gets it.\n"));
}

TEST_CASE("dkv policy reset and set --default send no policy") {
    for (auto const& arguments : {std::vector<std::string>{"policy", "reset"},
                                  std::vector<std::string>{"policy", "set", "--default"}}) {
        auto sidecar = with_engine();

        CHECK(run_dkv(arguments, sidecar).exit_code == 0);

        REQUIRE(sidecar.set_policies.size() == 1);
        CHECK_FALSE(sidecar.set_policies[0].policy.has_value());
    }
}

TEST_CASE("dkv policy set passes the sidecar's refusal on") {
    auto sidecar = with_engine();
    sidecar.refuse_policy =
        Error{ErrorCode::NotFound, "no policy 'snapvk'; there are fullkv, streamingllm, dynamickv"};

    auto const ran = run_dkv({"policy", "set", "snapvk"}, sidecar);

    CHECK(ran.exit_code == 1);
    CHECK(ran.err == "dkv: no policy 'snapvk'; there are fullkv, streamingllm, dynamickv\n");
}

TEST_CASE("dkv policy show with an unknown name lists the known ones") {
    auto sidecar = with_engine();

    auto const ran = run_dkv({"policy", "show", "snapvk"}, sidecar);

    CHECK(ran.exit_code == 1);
    CHECK(ran.err == "dkv: no policy 'snapvk'; there are fullkv, streamingllm, dynamickv\n");
}

TEST_CASE("dkv policy show explains the policy in force with the numbers in force") {
    auto sidecar = with_engine();

    auto const text = run_dkv({"policy", "show"}, sidecar);
    auto const json = run_dkv({"policy", "show", "streamingllm", "--json"}, sidecar);

    CHECK(contains(text.out, "dynamickv (what new sessions get)"));
    CHECK(contains(text.out, "    value   512\n"));
    auto const shown = Json::parse(json.out);
    CHECK(shown.at("parameters").at("capacity") == 256);
    std::vector<std::string> names;
    for (auto const& words : shown.at("explained"))
        names.push_back(words.at("name"));
    CHECK(names == std::vector<std::string>{"capacity", "window", "sinks", "ratio", "bytes"});
}

TEST_CASE("dkv stop stops it once") {
    auto sidecar = with_engine();

    auto const ran = run_dkv({"stop"}, sidecar);

    CHECK(ran.exit_code == 0);
    CHECK(sidecar.stops == 1);
}

TEST_CASE("dkv version answers without a sidecar, and exits 4 beside one of another version") {
    auto sidecar = FakeSidecar::running();
    CHECK(contains(run_dkv({"version"}, sidecar).out, "sidecar 7.8.9, protocol 1, at "));

    sidecar.fail = Error{ErrorCode::Unavailable, "no sidecar listens there"};
    auto const none = run_dkv({"version"}, sidecar);
    CHECK(none.exit_code == 0);
    CHECK(contains(none.out, "sidecar none: no sidecar listens there\n"));
    CHECK(Json::parse(run_dkv({"version", "--json"}, sidecar).out).at("sidecar").is_null());

    sidecar.fail = Error{ErrorCode::VersionMismatch, "it speaks 2, not 1"};
    CHECK(run_dkv({"version"}, sidecar).exit_code == 4);

    auto const short_form = run_dkv({"--version"}, sidecar);
    CHECK(short_form.out == std::string("dkv ") + kVersion + "\n");
    CHECK(short_form.exit_code == 0);
}

TEST_CASE("dkv doctor exits 1 only when something fails") {
    auto sidecar = FakeSidecar::running();
    CHECK(run_dkv({"doctor"}, sidecar).exit_code == 0);

    sidecar.fail = Error{ErrorCode::Unavailable, "no sidecar listens there"};
    auto const warned = run_dkv({"doctor"}, sidecar);
    CHECK(warned.exit_code == 0);
    CHECK(contains(warned.out, "warn  sidecar          no sidecar listens there\n"));
    CHECK(contains(warned.out, "start one with: dkv serve"));

    sidecar.fail = Error{ErrorCode::VersionMismatch, "it speaks 2, not 1"};
    auto const failed = run_dkv({"doctor", "--json"}, sidecar);
    CHECK(failed.exit_code == 1);
    CHECK(Json::parse(failed.out).at("worst") == "fail");

    // --bundle also writes: findings and exit code are those without it.
    TempDir const folder;
    auto const bundled = run_dkv({"doctor", "--bundle", folder / "b.json"}, sidecar);
    CHECK(bundled.exit_code == 1);
    CHECK(contains(bundled.out, "it speaks 2, not 1"));
    CHECK(contains(bundled.out, folder / "b.json: read it before you send it."));
    CHECK(std::filesystem::exists(folder / "b.json"));
    auto const json = run_dkv({"doctor", "--json", "--bundle", folder / "b.json"}, sidecar);
    CHECK(Json::parse(json.out).at("worst") == "fail");
    CHECK(Json::parse(json.out).at("file") == folder / "b.json");
}
