// dkv profile show, on a file that this test writes.
#include <fstream>

#include <doctest/doctest.h>

#include "cli/render/text.h"
#include "tests/cli/fakes.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

constexpr char const* kText = R"({
    "format": "dkv-profile", "version": 1,
    "model": {"name": "tiny", "geometry": {"layers": 2, "compressed": [0, 1], "q_heads": 4,
                                           "kv_heads": 2, "head_dim": 8}},
    "recipe": {"tasks": ["needle", "text"], "needles": 12, "method": "damage"},
    "granularity": "head", "alpha": 1, "floor": 0.2, "kernel": 15,
    "weights": [[1, 2], [4, 8]],
    "figures": {"needle": {"prompts": 11, "damage": [[1, 2], [3, 4]]}}})";

struct ProfileOnDisk {
    ProfileOnDisk() { std::ofstream(path) << kText; }
    TempDir folder;
    std::string path = folder / "tiny.json";
    FakeSidecar sidecar;
};

}  // namespace

TEST_CASE("dkv profile show says what was measured, and maps layers and heads") {
    ProfileOnDisk disk;

    auto const ran = run_dkv({"profile", "show", disk.path}, disk.sidecar);

    CHECK(ran.exit_code == 0);
    CHECK(ran.out ==
          "model     tiny, 2 layers of 2 KV heads\n"
          "measured  per KV head\n"
          "budgets   in proportion to weight^1, at least 0.2 of the mean\n"
          "kernel    15, where the policy names none\n"
          "recipe    tasks needle text, needles 12, method damage\n"
          "figures   needle: prompts 11\n"
          "\n"
          "layer     0\n"
          "head 0    ▅▇\n"
          "head 1    ▆█\n"
          "          one step down: half as much of the budget\n");
    CHECK(disk.sidecar.connects == 0);
}

TEST_CASE("dkv profile --help says what profiles are for, without Python") {
    FakeSidecar sidecar;
    for (char const* flag : {"--help", "-h"}) {
        auto const ran = run_dkv({"profile", flag}, sidecar);
        CHECK(ran.exit_code == 0);
        CHECK(contains(ran.out, "Without a command: lists the profiles on this machine"));
        CHECK(contains(ran.out, "show "));
    }
}

TEST_CASE("dkv profile show draws with letters where there is no Unicode") {
    ProfileOnDisk disk;
    auto const ran =
        run_dkv({"profile", "show", disk.path}, disk.sidecar,
                [](cli::Environment& environment) { environment.style.unicode = false; });
    CHECK(contains(ran.out, "head 0    +#\nhead 1    *@\n"));
}

TEST_CASE("dkv profile show --plot adds a bar for each layer and head") {
    ProfileOnDisk disk;
    auto const ran = run_dkv({"profile", "show", disk.path, "--plot"}, disk.sidecar);
    CHECK(contains(ran.out, "\n0 . 0     "));
    CHECK(contains(ran.out, "\n1 . 1     " + cli::bar(1, 30, {.unicode = true}) + "  8\n"));
}

TEST_CASE("dkv profile show works out what is kept of a prompt") {
    ProfileOnDisk disk;
    std::vector<std::string> arguments{"profile",    "show", disk.path,  "--tokens", "1000",
                                       "--capacity", "47",   "--window", "32"};

    auto const ran = run_dkv(arguments, disk.sidecar);

    // base 15: 60 tokens by 1 : 2 : 4 : 8, at least 3 each; and the window of 32.
    CHECK(contains(ran.out,
                   "Tokens kept of 1000 at capacity 47, the window of 32 included:\n"
                   "LAYER  HEAD 0  HEAD 1\n"
                   "    0      36      40\n"
                   "    1      48      64\n"));

    arguments.emplace_back("--json");
    auto const json = Json::parse(run_dkv(arguments, disk.sidecar).out);
    CHECK(json.at("name") == "tiny");
    CHECK(json.at("weights") == Json({{1.0, 2.0}, {4.0, 8.0}}));
    CHECK(json.at("kernel") == 15);
    CHECK(json.at("recipe").at("method") == "damage");
    CHECK(json.at("figures").at("needle").at("damage").at(1).at(1) == 4);
    CHECK(json.at("budgets").at("lengths") == Json({{36, 40}, {48, 64}}));
    CHECK(json.at("budgets").at("window") == 32);

    auto const whole =
        run_dkv({"profile", "show", disk.path, "--tokens", "30", "--json"}, disk.sidecar);
    CHECK(Json::parse(whole.out).at("budgets").at("lengths") == Json({{30, 30}, {30, 30}}));
}

TEST_CASE("dkv profile show says in one line what is wrong") {
    ProfileOnDisk disk;
    auto ran = run_dkv({"profile", "show", "/nonexistent"}, disk.sidecar);
    CHECK(ran.exit_code == 1);
    CHECK(ran.err == "dkv: /nonexistent cannot be read: No such file or directory\n");

    std::ofstream(disk.path) << "{}";
    ran = run_dkv({"profile", "show", disk.path, "--json"}, disk.sidecar);
    CHECK(ran.err == "dkv: " + disk.path + " is not a dkv-profile file\n");
    CHECK(Json::parse(ran.out).at("error").at("code") == "corrupt_data");

    std::ofstream(disk.path) << kText;
    ran =
        run_dkv({"profile", "show", disk.path, "--tokens", "100", "--capacity", "8"}, disk.sidecar);
    CHECK(ran.err == "dkv: capacity is 8, below the window of 32 tokens that are always kept\n");

    CHECK(run_dkv({"profile", "show"}, disk.sidecar).exit_code == 2);
    CHECK(run_dkv({"profile", "show", disk.path, "--capacity", "64"}, disk.sidecar).exit_code == 2);
}

TEST_CASE("dkv policy set --profile sends the profile, and refuses a file that is none") {
    ProfileOnDisk disk;
    auto sidecar = FakeSidecar::running();
    auto const ran = run_dkv({"policy", "set", "dynamickv", "--profile", disk.path, "--capacity",
                              "128", "--profile-floor", "0.1", "--score-norm", "layer-nosink"},
                             sidecar);
    REQUIRE(ran.exit_code == 0);
    REQUIRE(sidecar.set_policies.size() == 1);
    auto const& policy = *sidecar.set_policies[0].policy;
    REQUIRE(policy.profile);
    CHECK(policy.profile->name == "tiny");
    CHECK(policy.profile->layers == 2);
    CHECK(policy.profile->heads == 2);
    CHECK(policy.profile->weights == std::vector<double>{1, 2, 4, 8});
    CHECK(policy.profile->kernel == 15);
    CHECK(policy.profile_floor == 0.1);
    CHECK(policy.score_norm == wire::ScoreNorm::LayerNoSink);
    CHECK(contains(ran.out, "profile=tiny"));

    std::ofstream(disk.path) << "{";
    auto const refused = run_dkv({"policy", "set", "dynamickv", "--profile", disk.path}, sidecar);
    CHECK(refused.exit_code == 2);
    CHECK(refused.err ==
          "dkv: --profile: " + disk.path + " is not JSON (see 'dkv policy set --help')\n");
    CHECK(sidecar.set_policies.size() == 1);
}

TEST_CASE("dkv policy set takes every size, and shows it as it was given") {
    auto sidecar = FakeSidecar::running();
    auto const set = [&](std::vector<std::string> more) {
        std::vector<std::string> arguments{"policy", "set", "snapkv"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        auto const ran = run_dkv(arguments, sidecar);
        CHECK(ran.exit_code == 0);
        return *sidecar.set_policies.back().policy;
    };
    CHECK(set({"--ratio", "0.25"}).ratio == 0.25);
    CHECK(set({"--bytes", "512MiB"}).bytes == 536870912U);
    CHECK(set({"--bytes", "512"}).bytes == 512U);
    CHECK(set({"--keep-mass", "0.95"}).keep_mass == 0.95);
    CHECK(set({"--preset", "paper"}).preset == "paper");
}
