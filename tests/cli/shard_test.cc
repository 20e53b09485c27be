// Shards: whose a file is, what the environment says, and that all shards together do all of it.
#include "cli/saved/shard.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

#include <doctest/doctest.h>

#include "tests/cli/fakes.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;

namespace {

namespace fs = std::filesystem;

constexpr int kParts = 3;
constexpr unsigned kCaches = 12;

/// Variables of array jobs for one test; none of the others is set.
class ArrayJobVariables {
public:
    explicit ArrayJobVariables(std::vector<std::pair<char const*, char const*>> const& variables) {
        clear();
        for (auto const& [name, value] : variables)
            ::setenv(name, value, 1);
    }
    ~ArrayJobVariables() { clear(); }

private:
    static void clear() {
        for (char const* const name :
             {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN",
              "SLURM_ARRAY_TASK_STEP", "JOB_COMPLETION_INDEX", "TASK_ID", "TASK_COUNT"})
            ::unsetenv(name);
    }
};

/// "1/4", or the refusal.
std::string parsed(std::string const& text,
                   std::vector<std::pair<char const*, char const*>> const& variables = {}) {
    ArrayJobVariables const set(variables);
    auto const shard = cli::parse_shard(text);
    if (!shard) return shard.error().message;
    return std::to_string(shard.value().index) + "/" + std::to_string(shard.value().count);
}

struct Store {
    TempDir folder;
    Store() {
        fs::create_directory(folder / "in");
        for (unsigned seed = 0; seed < kCaches; ++seed)
            write_random_cache(folder / ("in/" + std::to_string(seed) + ".safetensors"), seed + 1);
    }
    Ran run(std::vector<std::string> arguments) const {
        FakeSidecar unasked;
        arguments.insert(arguments.begin() + 1, folder / "in");
        arguments.insert(arguments.end(), {"--capacity", "16", "--window", "8"});
        return run_dkv(std::move(arguments), unasked);
    }
};

std::string whole_text(fs::path const& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

std::multiset<std::string> sorted_lines(std::string const& text) {
    std::multiset<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);)
        lines.insert(line);
    return lines;
}

std::string part_of(int index) {
    return std::to_string(index) + "/" + std::to_string(kParts);
}

}  // namespace

TEST_CASE("a shard is written index/count, the index from 0") {
    CHECK(parsed("") == "--shard '': expected I/N with I from 0 to N-1, auto, or auto/N");
    CHECK(parsed("0/1") == "0/1");
    CHECK(parsed("0/4") == "0/4");
    CHECK(parsed("3/4") == "3/4");
    for (char const* const wrong :
         {"4/4", "1", "/4", "0/0", "-1/4", "0/4x", "a/4", " 0/4", "0/99999999999"})
        CHECK(parsed(wrong) == "--shard " + std::string(wrong) +
                                   ": expected I/N with I from 0 to N-1, auto, or auto/N");
}

TEST_CASE("a shard is what the array job says") {
    CHECK(parsed("auto", {{"SLURM_ARRAY_TASK_ID", "7"},
                          {"SLURM_ARRAY_TASK_COUNT", "4"},
                          {"SLURM_ARRAY_TASK_MIN", "1"},
                          {"SLURM_ARRAY_TASK_STEP", "2"}}) == "3/4");
    CHECK(parsed("auto", {{"TASK_ID", "2"}, {"TASK_COUNT", "3"}}) == "2/3");
    CHECK(parsed("auto/8", {{"JOB_COMPLETION_INDEX", "5"}}) == "5/8");
    // One task of an array run again alone: its count is 1, and the index is still the whole's.
    CHECK(parsed("auto/8", {{"SLURM_ARRAY_TASK_ID", "3"},
                            {"SLURM_ARRAY_TASK_COUNT", "1"},
                            {"SLURM_ARRAY_TASK_MIN", "3"}}) == "3/8");

    CHECK(parsed("auto") ==
          "--shard auto: SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX and TASK_ID "
          "are not set: give --shard I/N");
    CHECK(parsed("auto", {{"JOB_COMPLETION_INDEX", "3"}}) ==
          "--shard auto: JOB_COMPLETION_INDEX is 3, but nothing says how many there are: give "
          "--shard auto/N");
    CHECK(parsed("auto/4", {{"TASK_ID", "4"}}) ==
          "--shard auto/4: TASK_ID is 4: an array of 4 runs from 0 to 3");
    CHECK(parsed("auto/4", {{"TASK_ID", "one"}}) ==
          "--shard auto/4: TASK_ID is 'one', not a count");
    CHECK(parsed("auto", {{"SLURM_ARRAY_TASK_ID", "9"},
                          {"SLURM_ARRAY_TASK_COUNT", "3"},
                          {"SLURM_ARRAY_TASK_MIN", "1"}}) ==
          "--shard auto: SLURM_ARRAY_TASK_ID is 9, not one of 3 from 1 in steps of 1: give --shard "
          "I/N");
    // Not asked for: a job's variables alone leave no file out.
    CHECK(parsed("0/1", {{"SLURM_ARRAY_TASK_ID", "1"}, {"SLURM_ARRAY_TASK_COUNT", "4"}}) == "0/1");
}

TEST_CASE("contents decide whose a file is, and what cannot be read is of every shard") {
    Store const store;
    for (unsigned seed = 0; seed < kCaches; ++seed) {
        fs::path const path = store.folder / ("in/" + std::to_string(seed) + ".safetensors");
        fs::path const moved = store.folder / "elsewhere";
        fs::copy_file(path, moved, fs::copy_options::overwrite_existing);
        int owners = 0;
        for (std::uint32_t index = 0; index < kParts; ++index) {
            cli::Shard const shard{index, kParts};
            owners += shard.has(path) ? 1 : 0;
            CHECK(shard.has(path) == shard.has(moved));
            CHECK(shard.has(store.folder / "none"));
        }
        CHECK(owners == 1);
    }
}

TEST_CASE("the shards of a sweep have the rows of the whole, byte for byte") {
    Store const store;
    auto const sweep = [&](std::string const& name, std::vector<std::string> more) {
        more.insert(more.begin(), {"sweep", "--policy", "snapkv,knorm", "-o", store.folder / name});
        auto const ran = store.run(more);
        CHECK(ran.exit_code == 0);
        return whole_text(store.folder / name);
    };
    auto const whole = sweep("whole", {"--csv", store.folder / "whole.csv"});

    std::string all;
    for (int index = 0; index < kParts; ++index) {
        auto const part = sweep(part_of(index).substr(0, 1), {"--shard", part_of(index)});
        CHECK(part.size() < whole.size());
        all += part;
    }

    CHECK(sorted_lines(all) == sorted_lines(whole));
    // The whole command over the joined results computes nothing, and makes the whole's table.
    write_file(store.folder / "joined", all);
    auto const ran = store.run({"sweep", "--policy", "snapkv,knorm", "-o", store.folder / "joined",
                                "--csv", store.folder / "joined.csv"});
    CHECK(contains(ran.out, ": 0 computed, 24 known before\n"));
    CHECK(whole_text(store.folder / "joined.csv") == whole_text(store.folder / "whole.csv"));
    // A shard that was stopped goes on.
    write_file(store.folder / "0", whole_text(store.folder / "0").substr(0, 100));
    CHECK(sorted_lines(sweep("0", {"--shard", part_of(0)}) + whole_text(store.folder / "1") +
                       whole_text(store.folder / "2")) == sorted_lines(whole));
}

TEST_CASE("a shard that is empty, of a variable that is not set, is not all of the files") {
    Store const store;
    for (std::vector<std::string> const& command :
         {std::vector<std::string>{"sweep"}, {"compact", "-o", store.folder / "out/"}}) {
        auto arguments = command;
        arguments.insert(arguments.end(), {"--policy", "knorm", "--shard", ""});
        auto const ran = store.run(arguments);
        CHECK(ran.exit_code == 1);
        CHECK(contains(ran.err, "--shard '': expected I/N"));
        CHECK_FALSE(fs::exists(store.folder / "out"));
    }
}

TEST_CASE("a shard without files ends well") {
    Store const store;
    int empty = 0;
    for (int index = 0; index < 64; ++index) {
        auto const part = std::to_string(index) + "/64";
        auto const ran = store.run({"sweep", "--policy", "knorm", "--shard", part});
        CHECK(ran.exit_code == 0);
        empty += contains(ran.out, "shard " + part + ": 0 files, 1 point each") ? 1 : 0;
        CHECK(
            store
                .run({"compact", "-o", store.folder / "out/", "--policy", "knorm", "--shard", part})
                .exit_code == 0);
    }
    CHECK(empty >= 64 - static_cast<int>(kCaches));
    CHECK(std::distance(fs::directory_iterator(store.folder / "out"), {}) == kCaches);
}

TEST_CASE("the shards of a compaction write the files of the whole, byte for byte") {
    Store const store;
    auto const compact = [&](std::string const& out, std::vector<std::string> more) {
        more.insert(more.begin(), {"compact", "-o", store.folder / out, "--policy", "snapkv"});
        CHECK(store.run(more).exit_code == 0);
    };
    compact("whole", {});
    for (int index = 0; index < kParts; ++index)
        compact("parts", {"--shard", part_of(index)});

    for (auto const& entry : fs::directory_iterator(store.folder / "whole"))
        CHECK(whole_text(entry.path()) ==
              whole_text(fs::path(store.folder / "parts") / entry.path().filename()));
    CHECK(std::distance(fs::directory_iterator(store.folder / "parts"), {}) == kCaches);
}
