// --risk, and what dkv policy show says of certificates: on profiles that this test writes.
#include <algorithm>
#include <cstdlib>
#include <fstream>

#include <doctest/doctest.h>

#include "tests/cli/fakes.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

std::string on_one_line(std::string text) {
    std::ranges::replace(text, '\n', ' ');
    return text;
}

/// Two certificates of auto and one that says "none" of snapkv, for prompts of 60 to 80 tokens.
struct Certified {
    Certified() {
        ::setenv("DKV_PROFILES", folder.path().c_str(), 1);
        write({certificate("auto", 24, 0.05), certificate("auto", 16, 0.1),
               certificate("snapkv", 0, 0.05)});
    }
    ~Certified() { ::unsetenv("DKV_PROFILES"); }

    static Json certificate(std::string const& policy, std::uint32_t capacity, double epsilon) {
        return {
            {"capacity", capacity}, {"tau", 0.1},
            {"epsilon", epsilon},   {"delta", 0.05},
            {"requests", 60},       {"tasks", "60 needle shown"},
            {"tokens", {60, 80}},   {"flags", {{"policy", policy}, {"window", 8}, {"kernel", 5}}}};
    }
    void write(std::vector<Json> const& certificates) const {
        Json figures = Json::object();
        for (Json const& one : certificates)
            figures["certified p" + std::to_string(figures.size())] = one;
        Json const geometry{{"layers", 3},
                            {"compressed", {0, 1, 2}},
                            {"q_heads", 4},
                            {"kv_heads", 2},
                            {"head_dim", 4}};
        std::ofstream(path) << Json{
            {"format", "dkv-profile"},
            {"version", 1},
            {"model", {{"name", "tiny"}, {"geometry", geometry}, {"weights", "w0"}}},
            {"recipe", Json::object()},
            {"granularity", "layer"},
            {"alpha", 1},
            {"floor", 0.2},
            {"weights", {{1}, {2}, {4}}},
            {"figures", figures}};
    }
    /// A cache of 80 tokens by the weights with this fingerprint.
    std::string cache(std::string const& name, std::string const& weights) const {
        auto file = random_cache();
        if (!weights.empty()) file.header["__metadata__"]["provenance.model_weights"] = weights;
        write_file(folder / name, file.text());
        return folder / name;
    }
    Ran compact(std::string const& input, std::vector<std::string> more) const {
        FakeSidecar unasked;
        std::vector<std::string> arguments{"compact",   input, "-o", folder / "small.safetensors",
                                           "--profile", path};
        arguments.insert(arguments.end(), more.begin(), more.end());
        return run_dkv(arguments, unasked);
    }

    TempDir folder;
    std::string path = folder / "tiny.json";
};

}  // namespace

TEST_CASE("dkv policy set --risk takes size and parameters from the certificate that fits") {
    Certified const disk;
    auto sidecar = FakeSidecar::running();
    auto const set = [&](std::string const& risk) {
        auto const ran =
            run_dkv({"policy", "set", "auto", "--profile", disk.path, "--risk", risk}, sidecar);
        CHECK(ran.exit_code == 0);
        CHECK(contains(on_one_line(ran.out),
                       "certified p0: at most 5 % of such requests lose more than 0.1, with "
                       "confidence 0.95 (60 needle shown; 60 to 80 tokens)."));
        return *sidecar.set_policies.back().policy;
    };

    auto const policy = set("0.05");
    CHECK(policy.capacity == 24U);
    CHECK(policy.window == 8U);
    CHECK(policy.kernel == 5U);
    CHECK(policy.profile->name == "tiny");
    CHECK(set("0.2").capacity == 24U);
}

TEST_CASE("dkv policy show --risk says what the certificate that fits gives") {
    Certified const disk;
    auto sidecar = FakeSidecar::running();

    auto const shown =
        run_dkv({"policy", "show", "auto", "--profile", disk.path, "--risk", "0.05"}, sidecar);
    CHECK(shown.exit_code == 0);
    CHECK(contains(on_one_line(shown.out), "certified p0: at most 5 % of such requests lose more"));
    CHECK(contains(shown.out, "\nauto --capacity 24 --window 8 --kernel 5\n"));
    auto const json = Json::parse(
        run_dkv({"policy", "show", "auto", "--profile", disk.path, "--risk", "0.2", "--json"},
                sidecar)
            .out);
    CHECK(json.at("capacity") == 24);
    CHECK(json.at("flags") == Json{{"window", "8"}, {"kernel", "5"}});
    CHECK(json.at("weights") == "w0");
    CHECK(json.at("tokens") == Json{60, 80});

    auto const none =
        run_dkv({"policy", "show", "snapkv", "--profile", disk.path, "--risk", "0.5"}, sidecar);
    CHECK(none.exit_code == 1);
    CHECK(contains(none.err, "certified p2 at risk 0.05 (none: keep it whole)"));
    CHECK(contains(run_dkv({"policy", "show", "auto", "--profile", disk.path}, sidecar).err,
                   "--profile requires --risk"));
    CHECK(
        contains(run_dkv({"policy", "show", "--profile", disk.path, "--risk", "0.5"}, sidecar).err,
                 "--risk requires NAME"));
}

TEST_CASE("--risk is refused by name where no certificate fits") {
    Certified const disk;
    auto sidecar = FakeSidecar::running();
    auto const refused = [&](std::vector<std::string> more) {
        std::vector<std::string> arguments{"policy", "set"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        auto const ran = run_dkv(arguments, sidecar);
        CHECK(ran.exit_code != 0);
        CHECK(sidecar.set_policies.empty());
        return ran.err;
    };

    CHECK(refused({"auto", "--profile", disk.path, "--risk", "0.01"}) ==
          "dkv: " + disk.path +
              " has no certificate of auto at a risk of at most 0.01; it has certified p0 at risk "
              "0.05 (24 tokens), "
              "certified p1 at risk 0.1 (16 tokens). dkv certify makes one\n");
    CHECK(contains(refused({"snapkv", "--profile", disk.path, "--risk", "0.5"}),
                   "certified p2 at risk 0.05 (none: keep it whole)"));
    CHECK(
        contains(refused({"h2o", "--profile", disk.path, "--risk", "0.5"}), "it has none at all"));
    CHECK(refused({"auto", "--profile", disk.path, "--risk", "0.1", "--window", "4"}) ==
          "dkv: --risk takes --window from the certificate: leave it out\n");
    CHECK(contains(refused({"auto", "--risk", "0.1"}), "--risk requires --profile"));
    CHECK(contains(refused({"auto", "--profile", disk.path, "--risk", "nan"}), "nan"));
    auto const one = Certified::certificate("auto", 24, 0.05);
    auto other = one;
    other["flags"]["window"] = 16;  // A larger size under it says nothing of `one`.
    other["capacity"] = 48;
    disk.write({one, other});
    CHECK(
        contains(refused({"auto", "--profile", disk.path, "--risk", "0.1"}),
                 " has certificates of auto with other parameters or another tau: certified p0 at "
                 "risk 0.05 (24 tokens), certified p1 at risk 0.05 (48 tokens). Keep one of them "
                 "in the profile\n"));
    disk.write({one, Certified::certificate("auto", 0, 0.05)});  // Of other questions.
    CHECK(contains(refused({"auto", "--profile", disk.path, "--risk", "0.1"}),
                   "certified p1 at risk 0.05 (none: keep it whole)"));
    disk.write({Json{{"flags", {{"policy", "auto"}}}, {"capacity", "x"}}});
    CHECK(contains(refused({"auto", "--profile", disk.path, "--risk", "0.1"}),
                   "certificate 'certified p0' is malformed: "));
    auto strange = Certified::certificate("auto", 24, 0.05);
    strange["flags"]["no_such"] = 1;
    disk.write({strange});
    CHECK(contains(refused({"auto", "--profile", disk.path, "--risk", "0.1"}),
                   "the certificate has --no-such, which this dkv does not know"));
}

TEST_CASE("dkv compact --risk compacts a cache that the certificate holds for, and no other") {
    Certified const disk;
    auto const mine = disk.cache("mine.safetensors", "w0");

    auto const ran = disk.compact(mine, {"--risk", "0.05", "--for", "this-question"});
    CHECK(ran.err == "dkv: --risk takes --for from the certificate: leave it out\n");
    auto const made = disk.compact(mine, {"--risk", "0.05"});
    CHECK(made.exit_code == 0);
    CHECK(contains(made.out, "(24.0 on average) of 80"));

    CHECK(contains(disk.compact(disk.cache("other.safetensors", "w1"), {"--risk", "0.05"}).err,
                   "the file is of weights w1, and 'certified p0' of w0: give a size\n"));
    CHECK(contains(disk.compact(disk.cache("none.safetensors", ""), {"--risk", "0.05"}).err,
                   "the file does not say which weights made it"));
    auto longer = Certified::certificate("auto", 24, 0.05);
    longer["tokens"] = {1000, 1024};
    disk.write({longer});
    CHECK(contains(disk.compact(mine, {"--risk", "0.05", "--force"}).err,
                   "the prompt has 80 tokens, and 'certified p0' is of prompts of 1000 to 1024: "
                   "give a size\n"));
}

TEST_CASE("dkv policy show lists the certificates of the profiles on this machine") {
    Certified const disk;
    auto sidecar = FakeSidecar::running();
    sidecar.fail = Error{ErrorCode::Unavailable, "no sidecar"};

    auto const shown = run_dkv({"policy", "show", "auto"}, sidecar).out;
    CHECK(contains(shown,
                   "\n  certified p0\n    tiny: at 24 tokens at most 5 % of such requests lose "
                   "more than 0.1,"));
    CHECK(contains(shown, "60 needle shown; 60 to 80 tokens)"));
    CHECK(contains(run_dkv({"policy", "show", "snapkv"}, sidecar).out,
                   "tiny: none at risk 0.05: keep it whole"));
    auto const json = Json::parse(run_dkv({"policy", "show", "auto", "--json"}, sidecar).out);
    CHECK(json.at("certificates").at(1).at("capacity") == 16);
}
