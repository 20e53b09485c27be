// dkv sweep over files that are really there; no sidecar is asked.
#include <fstream>
#include <sstream>

#include <doctest/doctest.h>

#include "tests/cli/fakes.h"
#include "tests/cli/saved/formats/written.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

Ran sweep(std::vector<std::string> arguments) {
    FakeSidecar unasked;
    arguments.insert(arguments.begin(), "sweep");
    auto const ran = run_dkv(std::move(arguments), unasked);
    CHECK(unasked.connects == 0);
    return ran;
}

}  // namespace

TEST_CASE("dkv sweep: a row for each point, tables of means, the same bytes every time") {
    TempDir const folder;
    auto const a = write_random_cache(folder / "a.safetensors", 1);
    auto const b = write_random_cache(folder / "b.safetensors", 2);
    std::vector<std::string> const arguments{
        a, b, "--policy", "dynamickv,streamingllm", "--capacity", "16,32", "--window", "8"};
    auto with_output = arguments;
    with_output.insert(with_output.end(), {"-o", folder / "r.jsonl", "--csv", folder / "r.csv"});
    auto const ran = sweep(with_output);
    REQUIRE(ran.exit_code == 0);
    CHECK(contains(ran.out, "2 files, 4 points each: 8 computed, 0 known before\n"));
    CHECK(contains(ran.out, "POLICY            16      32\n"));
    CHECK(contains(ran.out, "Relative L2 error of the attention's output\n"));

    std::istringstream lines(read_text(folder / "r.jsonl"));
    std::string line;
    int count = 0;
    while (std::getline(lines, line)) {
        auto const row = Json::parse(line);
        CHECK(row.at("error") == "");
        CHECK(row.at("bytes_full") == 3 * 80 * 2 * 2 * 4 * 4);
        CHECK(row.at("bytes_kept") == row.at("capacity").get<int>() * 3 * 2 * 2 * 4 * 4);
        CHECK(row.at("mass_kept").size() == 3);
        CHECK(row.at("error_l2").size() == 3);
        CHECK(row.at("lengths").size() == 3);
        ++count;
    }
    CHECK(count == 8);
    CHECK(std::ranges::count(read_text(folder / "r.csv"), '\n') == 9);

    auto other = arguments;
    other.insert(other.end(), {"-o", folder / "again.jsonl"});
    REQUIRE(sweep(other).exit_code == 0);
    CHECK(read_text(folder / "again.jsonl") == read_text(folder / "r.jsonl"));
}

TEST_CASE("dkv sweep computes what its results do not have yet") {
    TempDir const folder;
    auto const a = write_random_cache(folder / "a.safetensors", 1);
    auto const run = [&](std::string const& capacities) {
        return Json::parse(sweep({a, "--policy", "snapkv", "--capacity", capacities, "--window",
                                  "8", "-o", folder / "r.jsonl", "--json"})
                               .out);
    };
    run("16");
    auto const more = run("16,32");
    CHECK(more.at("computed") == 1);
    CHECK(more.at("known_before") == 1);
    CHECK(more.at("rows").size() == 2);

    // An interruption in the middle of a line.
    auto const whole = read_text(folder / "r.jsonl");
    write_file(folder / "r.jsonl", whole.substr(0, whole.size() - 20));
    CHECK(run("16,32").at("computed") == 1);
    CHECK(read_text(folder / "r.jsonl") == whole);

    // Another prompt under the same name.
    write_random_cache(folder / "a.safetensors", 3);
    CHECK(run("16,32").at("computed") == 2);
}

TEST_CASE("dkv sweep takes its grid from a file, and flags go before it") {
    TempDir const folder;
    write_random_cache(folder / "a.safetensors", 1);
    write_file(folder / "sweep.toml",
               "files = [{path = \"a.safetensors\", task = \"qa\"}]\npolicies = [\"snapkv\"]\n"
               "capacities = [16, 32]\nwindows = [8]\nerror = false\noutput = \"r.jsonl\"\n");
    auto const json =
        Json::parse(sweep({"--config", folder / "sweep.toml", "--capacity", "24", "--json"}).out);
    REQUIRE(json.at("rows").size() == 1);
    CHECK(json.at("rows").at(0).at("capacity") == 24);
    CHECK(json.at("rows").at(0).at("task") == "qa");
    CHECK(json.at("rows").at(0).at("error_l2").is_null());
    CHECK(json.at("output") == folder / "r.jsonl");
}

TEST_CASE("dkv sweep: what cannot be had stands below the tables, and the rest is there") {
    TempDir const folder;
    auto const a = write_random_cache(folder / "a.safetensors", 1);
    auto const ran = sweep({a, "--policy", "snapkv,h2o", "--capacity", "16", "--window", "8"});
    CHECK(ran.exit_code == 0);
    CHECK(contains(ran.out, "\nNot to be had:\n- h2o needs the queries of the last 80 tokens"));
    CHECK(sweep({a, "--policy", "h2o", "--capacity", "16", "--window", "8"}).exit_code == 1);
    // Of several files, which.
    auto const b = write_random_cache(folder / "b.safetensors", 2);
    auto const both = sweep({a, b, "--policy", "snapkv,h2o", "--capacity", "16", "--window", "8"});
    CHECK(contains(both.out, "streamingllm need none (" + a + ", " + b + ")\n"));
}

TEST_CASE("dkv sweep: a file that is broken stops none of the others, and fails at the end") {
    TempDir const folder;
    auto const a = write_random_cache(folder / "a.safetensors", 1);
    write_file(folder / "b.safetensors", "broken");
    auto const ran = sweep(
        {folder / "b.safetensors", a, "--policy", "snapkv", "--capacity", "16", "--window", "8"});
    CHECK(ran.exit_code == 1);
    CHECK(contains(ran.err, "dkv: " + folder / "b.safetensors" + ": "));
    CHECK(contains(ran.out, "1 file, 1 point each: 1 computed, 0 known before\n"));
}

TEST_CASE("dkv sweep passes over compacted files, and names them") {
    TempDir const folder;
    FakeSidecar unasked;
    auto const whole = write_random_cache(folder / "b.safetensors", 1);
    auto const small = folder / "a.safetensors";
    REQUIRE(run_dkv({"compact", whole, "-o", small, "--policy", "snapkv", "--capacity", "16",
                     "--window", "8"},
                    unasked)
                .exit_code == 0);
    std::vector<std::string> const grid{"--policy", "snapkv", "--capacity", "16", "--window", "8"};
    auto const with_grid = [&](std::vector<std::string> arguments) {
        arguments.insert(arguments.end(), grid.begin(), grid.end());
        return sweep(arguments);
    };

    auto const both = with_grid({small, whole});
    auto const a_folder = with_grid({std::string(folder.path()), "--json"});
    auto const alone = with_grid({small});

    CHECK(both.exit_code == 0);
    CHECK(both.err ==
          "dkv: " + small +
              ": passed over: tokens are missing already, and a sweep needs whole caches\n");
    CHECK(contains(both.out, "1 file, 1 point each: 1 computed, 0 known before\n"));
    CHECK(a_folder.exit_code == 0);
    CHECK(contains(a_folder.err, small));
    CHECK(Json::parse(a_folder.out).at("files_compacted") == Json({small}));
    CHECK(alone.exit_code == 1);
    CHECK(alone.err ==
          "dkv: " + small + ": tokens are missing already: a sweep needs whole caches\n");
}

TEST_CASE("dkv sweep refuses in one line what it cannot begin") {
    TempDir const folder;
    auto const a = write_random_cache(folder / "a.safetensors", 1);
    CHECK(sweep({a, "--capacity", "16"}).err == "dkv: a sweep needs policies: give --policy\n");
    CHECK(sweep({a, "--policy", "snapkv"}).err ==
          "dkv: a sweep needs sizes: give --capacity, --ratio, --bytes or --keep-mass\n");
    CHECK(sweep({"--policy", "snapkv", "--capacity", "16"}).err == "dkv: a sweep needs files\n");
    CHECK(sweep({a, "--policy", "snapkv", "--bytes", "1X"}).exit_code == 2);
    CHECK(sweep({a, "--policy", "snapkv", "--capacity", "16", "-o", folder / "no/r.jsonl"}).err ==
          "dkv: " + folder / "no/r.jsonl" + ": cannot be opened: No such file or directory\n");
}

TEST_CASE("dkv sweep that is interrupted says how to go on") {
    TempDir const folder;
    auto const a = write_random_cache(folder / "a.safetensors", 1);
    FakeSidecar unasked;
    auto const ran =
        run_dkv({"sweep", a, "--policy", "snapkv", "--capacity", "16", "-o", folder / "r.jsonl"},
                unasked, [](cli::Environment& world) {
                    world.catch_interrupts = [] { return [] { return true; }; };
                });
    CHECK(ran.exit_code == 130);
    CHECK(ran.err ==
          "dkv: interrupted; the same command goes on from " + folder / "r.jsonl" + "\n");
}
