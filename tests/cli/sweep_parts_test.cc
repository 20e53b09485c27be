// What a sweep is made of: the grid, its configuration, its results.
#include <fstream>
#include <sstream>

#include <doctest/doctest.h>

#include "cli/render/sweep.h"
#include "cli/saved/sweep/config.h"
#include "cli/saved/sweep/results.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::cli;
using dkv::test::TempDir;
using dkv::test::write_file;

namespace {

std::vector<std::string> asked_of(Grid const& grid) {
    auto const points = grid_points(grid);
    REQUIRE(points);
    std::vector<std::string> texts;
    for (auto const& point : points.value())
        texts.push_back(point.asked.dump());
    return texts;
}

std::string text_of(std::string const& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

Error config_error(TempDir const& folder, std::string const& text) {
    write_file(folder / "sweep.toml", text);
    auto const config = read_sweep_config(folder / "sweep.toml");
    REQUIRE_FALSE(config);
    return config.error();
}

}  // namespace

TEST_CASE("grid: every policy with every size, window, kernel and pool") {
    Grid grid;
    grid.policies = {"snapkv", "pyramidkv"};
    grid.capacity = {64, 128};
    grid.window = {8};
    grid.pool = {Pool::Max, Pool::Avg};
    CHECK(asked_of(grid) ==
          std::vector<std::string>{
              R"({"policy":"snapkv","capacity":64,"window":8,"pool":"max"})",
              R"({"policy":"snapkv","capacity":64,"window":8,"pool":"avg"})",
              R"({"policy":"snapkv","capacity":128,"window":8,"pool":"max"})",
              R"({"policy":"snapkv","capacity":128,"window":8,"pool":"avg"})",
              R"({"policy":"pyramidkv","capacity":64,"window":8,"pool":"max"})",
              R"({"policy":"pyramidkv","capacity":64,"window":8,"pool":"avg"})",
              R"({"policy":"pyramidkv","capacity":128,"window":8,"pool":"max"})",
              R"({"policy":"pyramidkv","capacity":128,"window":8,"pool":"avg"})"});
}

TEST_CASE("grid: a parameter that a policy does not look at makes no points") {
    Grid grid;
    grid.policies = {"streamingllm", "fullkv"};
    grid.capacity = {64};
    grid.kernel = {5, 7};
    grid.pool = {Pool::Max, Pool::Avg};
    CHECK(asked_of(grid) == std::vector<std::string>{R"({"policy":"streamingllm","capacity":64})",
                                                     R"({"policy":"fullkv"})"});
}

TEST_CASE("grid: sizes of every kind stand beside each other, and the same is asked for once") {
    Grid grid;
    grid.policies = {"snapkv", "snapkv"};
    grid.capacity = {64, 64};
    grid.ratio = {0.25};
    grid.bytes = {1U << 20U};
    grid.keep_mass = {0.95};
    grid.sinks = {2};
    grid.reduce = {GroupReduce::Max};
    CHECK(asked_of(grid) ==
          std::vector<std::string>{R"({"policy":"snapkv","capacity":64,"reduce":"max"})",
                                   R"({"policy":"snapkv","ratio":0.25,"reduce":"max"})",
                                   R"({"policy":"snapkv","bytes":1048576,"reduce":"max"})",
                                   R"({"policy":"snapkv","keep_mass":0.95,"reduce":"max"})"});
    CHECK(grid_points(grid).value().front().request.capacity == 64);
    CHECK_FALSE(grid_points(grid).value().front().request.sinks);
}

TEST_CASE("grid: no policy and no size are refused") {
    CHECK(grid_points({}).error().message == "a sweep needs policies: give --policy");
    Grid grid;
    grid.policies = {"snapkv"};
    CHECK(grid_points(grid).error().message ==
          "a sweep needs sizes: give --capacity, --ratio, --bytes or --keep-mass");
}

TEST_CASE("config: a TOML file says all that flags can") {
    TempDir const folder;
    write_file(folder / "sweep.toml", R"(
files = ["a.safetensors", {path = "/abs/b.safetensors", task = "qa"}]
output = "out/results.jsonl"
policies = ["dynamickv", "snapkv"]
capacities = [64, 128]
ratios = [0.25, 1]
bytes = [4096, "1MiB"]
windows = [8]
kernels = [7]
pools = ["avg"]
r_maxs = [5, 10]
query_norms = [true]
error = false
)");
    auto const config = read_sweep_config(folder / "sweep.toml");
    REQUIRE(config);
    auto const& [files, grid, output, csv, error] = config.value();
    REQUIRE(files.size() == 2);
    CHECK(files[0].path == folder / "a.safetensors");
    CHECK(files[1].path == "/abs/b.safetensors");
    CHECK(files[1].task == "qa");
    CHECK(output == folder / "out/results.jsonl");
    CHECK(csv.empty());
    CHECK(grid.policies == std::vector<std::string>{"dynamickv", "snapkv"});
    CHECK(grid.capacity == std::vector<std::uint32_t>{64, 128});
    CHECK(grid.ratio == std::vector<double>{0.25, 1});
    CHECK(grid.bytes == std::vector<std::uint64_t>{4096, 1U << 20U});
    CHECK(grid.pool == std::vector{Pool::Avg});
    CHECK(grid.r_max == std::vector{5.0, 10.0});
    CHECK(grid.query_norm == std::vector{true});
    CHECK(error == false);
}

TEST_CASE("config: what is wrong is told with its line") {
    TempDir const folder;
    auto const begin = folder / "sweep.toml" + ", line ";
    CHECK(
        config_error(folder, "policy = 1\n").message.starts_with(begin + "1: 'policy' is unknown"));
    CHECK(config_error(folder, "\nfiles = 3\n").message == begin + "2: files is not an array");
    CHECK(config_error(folder, "files = [3]\n").message ==
          begin + "1: a file is a path, or {path = \"…\", task = \"…\"}");
    CHECK(config_error(folder, "capacities = [-1]\n").message ==
          begin + "1: capacities has -1, not a count");
    CHECK(config_error(folder, "capacities = [\"many\"]\n").message ==
          begin + "1: capacities has 'many', not a count");
    CHECK(config_error(folder, "bytes = [\"1X\"]\n").message ==
          begin + "1: bytes has '1X', not a number of bytes, or 512MiB");
    CHECK(config_error(folder, "pools = [\"median\"]\n").message ==
          begin + "1: pools has 'median', not max or avg");
    CHECK(config_error(folder, "error = 1\n").message ==
          begin + "1: error is neither true nor false");
    auto const broken = config_error(folder, "files = [\n");
    CHECK(broken.code == ErrorCode::CorruptData);
    CHECK(broken.message.starts_with(begin));
    CHECK(read_sweep_config(folder / "none.toml").error().message ==
          folder / "none.toml" + ": No such file or directory");
}

TEST_CASE("results: rows are there again, and a torn last line is taken off") {
    TempDir const folder;
    auto const path = folder / "results.jsonl";
    Json const row{{"file", "a"}, {"error", ""}};
    {
        auto results = ResultsFile::open(path);
        REQUIRE(results);
        CHECK(results.value().rows().empty());
        REQUIRE(results.value().append({row, row}));
        CHECK(results.value().rows().size() == 2);
    }
    auto const whole = text_of(path);
    write_file(path, whole + R"({"file":"b","po)");
    {
        auto const again = ResultsFile::open(path);
        REQUIRE(again);
        CHECK(again.value().rows() == std::vector<Json>{row, row});
    }
    CHECK(text_of(path) == whole);
}

TEST_CASE("results: two sweeps cannot write one file, and other files are no results") {
    TempDir const folder;
    auto const path = folder / "results.jsonl";
    auto const first = ResultsFile::open(path);
    REQUIRE(first);
    CHECK(ResultsFile::open(path).error().message == path + ": another sweep writes it");
    write_file(folder / "notes.txt", "{\"file\":\"a\"}\nhello\n");
    CHECK(ResultsFile::open(folder / "notes.txt").error().message ==
          folder / "notes.txt" + ", line 2: no result of a sweep");
    CHECK(text_of(folder / "notes.txt") == "{\"file\":\"a\"}\nhello\n");
    CHECK(ResultsFile::open("/dev/null").error().message == "/dev/null: not a regular file");
}

TEST_CASE("results: a row is known by its file's content and by what was asked for") {
    TempDir const folder;
    write_file(folder / "a", std::string(1U << 20U, 'a'));
    auto const before = fingerprint(folder / "a").value();
    CHECK(fingerprint(folder / "a").value() == before);
    SweepFile const file{folder / "a", ""};
    GridPoint const point{{}, {{"policy", "snapkv"}, {"capacity", 64}}};
    offline::SweepRow swept;
    swept.params.capacity = 64;
    swept.lengths = {64, 64, 64, 64};
    swept.damage = {0.5, 0};
    swept.mass_kept = {0.5F, 1};
    CacheFacts facts;
    facts.geometry = {2, 4, 2, 4, Dtype::F32};
    auto const row = row_json(file, before, facts, point, true, swept);
    CHECK(row.at("lengths").dump() == "[[64,64],[64,64]]");
    CHECK(row.at("error_l2").is_null());
    auto const found = [&](Json const& of, std::string const& print, Json const& asked,
                           bool error) {
        std::filesystem::remove(folder / "rows");
        auto results = ResultsFile::open(folder / "rows");
        REQUIRE(results);
        REQUIRE(results.value().append({of}));
        auto const* const known = results.value().find(file, print, asked, error);
        return known != nullptr && *known == of;
    };
    CHECK(found(row, before, point.asked, true));
    CHECK_FALSE(found(row, before + "0", point.asked, true));
    CHECK_FALSE(found(row, before, point.asked, false));
    CHECK_FALSE(found(row, before, Json{{"policy", "snapkv"}, {"capacity", 65}}, true));
    auto without_damage = row;
    without_damage.erase("damage");
    CHECK_FALSE(found(without_damage, before, point.asked, true));

    std::string one_byte_else(1U << 20U, 'a');
    one_byte_else[700'001] = 'b';
    write_file(folder / "a", one_byte_else);
    CHECK_FALSE(found(row, fingerprint(folder / "a").value(), point.asked, true));
    CHECK(csv_text({row}) ==
          "file,task,model,prompt_tokens,policy,capacity,window,kernel,pool,tokens_per_head,"
          "bytes_kept,bytes_full,damage,mass_kept,error_l2,error\n" +
              folder / "a" + ",,,0,snapkv,64,32,7,max,64.0,0,0,0.25,0.75,,\n");
}

TEST_CASE("results: a folder is known by its files' content and names") {
    TempDir const folder;
    auto const path = [&](char const* name) { return std::filesystem::path(folder / name); };
    std::filesystem::create_directory(path("one"));
    write_file(folder / "one/a", "text");
    auto const before = fingerprint(path("one")).value();
    std::filesystem::rename(path("one"), path("two"));
    CHECK(fingerprint(path("two")).value() == before);
    std::filesystem::rename(path("two/a"), path("two/b"));
    CHECK(fingerprint(path("two")).value() != before);
    CHECK(fingerprint(path("three")).error().code == ErrorCode::Io);
}

namespace {

Json swept_row(char const* policy, int capacity, Json damage, Json mass, char const* error) {
    return {{"asked", {{"policy", policy}, {"capacity", capacity}}},
            {"damage", std::move(damage)},
            {"mass_kept", std::move(mass)},
            {"error_l2", nullptr},
            {"error", error}};
}

}  // namespace

TEST_CASE("sweep tables: policies by sizes, means over files and layers, reasons below") {
    CHECK(sweep_text({swept_row("snapkv", 64, {0.25, 0.75}, {0.5, 0.7}, ""),
                      swept_row("snapkv", 64, {0.5, 0.5}, {0.6, 0.6}, ""),
                      swept_row("snapkv", 128, {0, 0.25}, {0.9, 0.9}, ""),
                      swept_row("h2o", 64, nullptr, nullptr, "no queries"),
                      swept_row("h2o", 128, nullptr, nullptr, "no queries")},
                     {}) ==
          "Damage: share of the attention that is lost, the window's and what is predicted of "
          "later text,\nheads weighted by the model's profile. It ranks policies; the least is the "
          "best.\n"
          "POLICY      64     128\n"
          "snapkv  0.5000  0.1250\n"
          "h2o          -       -\n"
          "\nShare of the window's attention that is kept, mean over files and layers\n"
          "POLICY      64     128\n"
          "snapkv  60.0 %  90.0 %\n"
          "h2o          -       -\n"
          "\nNot to be had:\n- no queries\n");
}

TEST_CASE("sweep tables: without a profile they say that they do not rank policies") {
    CHECK(sweep_text({swept_row("snapkv", 64, nullptr, {0.5, 0.7}, "")}, {}) ==
          "No damage is known: there is no profile of this model (dkv calibrate MODEL makes one).\n"
          "The numbers below see the window alone, and often rank policies backwards.\n"
          "\nShare of the window's attention that is kept, mean over files and layers\n"
          "POLICY      64\n"
          "snapkv  60.0 %\n");
    CHECK(sweep_text({swept_row("knorm", 64, nullptr, nullptr, "")}, {}) ==
          "No attention is known: the files have no queries.\n");
}
