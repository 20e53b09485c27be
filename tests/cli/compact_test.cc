// dkv compact and dkv convert on files that are really there.
#include <filesystem>
#include <fstream>
#include <sstream>

#include <doctest/doctest.h>

#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/progress_bar.h"
#include "tests/cli/fakes.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

namespace fs = std::filesystem;

Ran dkv_files(std::vector<std::string> const& arguments) {
    FakeSidecar unasked;
    auto const ran = run_dkv(arguments, unasked);
    CHECK(unasked.connects == 0);
    return ran;
}

/// Eight rows of window, sixteen in all.
Ran compact(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "compact");
    arguments.insert(arguments.end(), {"--window", "8"});
    return dkv_files(arguments);
}

std::string file_text(std::string const& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

}  // namespace

TEST_CASE("dkv compact writes a smaller file that says what it went through") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors");
    auto const before = file_text(input);

    auto const ran =
        compact({input, "-o", folder / "b.safetensors", "--policy", "snapkv", "--capacity", "16"});

    REQUIRE(ran.exit_code == 0);
    CHECK(ran.err.empty());
    CHECK(contains(ran.out,
                   input + " → " + folder / "b.safetensors" + ": 16 of 80 tokens per head, "));
    CHECK(contains(ran.out, " of the attention ("));
    CHECK(contains(ran.out, "\n  note: the input has no checksums"));
    CHECK(file_text(input) == before);
    auto const file =
        Json::parse(dkv_files({"inspect", "--json", "--verify", folder / "b.safetensors"}).out);
    CHECK(file.at("files").at(0).at("compacted") == true);
    CHECK(file.at("files").at(0).at("checksums") == true);
    CHECK(file.at("files").at(0).at("tokens_per_head") == 16);
    CHECK(file.at("files").at(0).at("provenance").at("policy") == "snapkv");
    auto const words = dkv_files({"inspect", folder / "b.safetensors"}).out;
    CHECK(contains(words, "80 tokens; 16.0 kept per layer and head (20.0 %)\n"));
    CHECK(contains(words, "WHERE IN THE PROMPT"));
}

TEST_CASE("dkv compact of a folder: a line for each file, a total, the same names") {
    TempDir const folder;
    fs::create_directories(folder / "in/deep");
    write_random_cache(folder / "in/a.safetensors", 1);
    write_random_cache(folder / "in/b.safetensors", 2);
    write_random_cache(folder / "in/deep/c.safetensors", 3);
    write_file(folder / "in/notes.txt", "no cache");

    auto const ran = compact({folder / "in", "-o", folder / "out", "--capacity", "16"});
    REQUIRE(ran.exit_code == 0);
    CHECK(ran.err == "dkv: 1 file in folders passed over: no cache\n");
    CHECK(contains(ran.out, "2 files: 2 written; "));
    CHECK(fs::exists(folder / "out/a.safetensors"));
    CHECK(fs::exists(folder / "out/b.safetensors"));
    CHECK_FALSE(fs::exists(folder / "out/deep"));

    auto const again =
        compact({folder / "in", "-r", "-o", folder / "out", "--capacity", "16", "--json"});
    REQUIRE(again.exit_code == 0);
    auto const total = Json::parse(again.out).at("total");
    CHECK(total.at("files") == 3);
    CHECK(total.at("already_there") == 2);
    CHECK(total.at("written") == 1);
    CHECK(fs::exists(folder / "out/deep/c.safetensors"));
}

TEST_CASE("dkv compact: one file's failure stops none of the others") {
    TempDir const folder;
    auto const good = write_random_cache(folder / "a.safetensors");
    write_file(folder / "b.safetensors", "broken");

    auto const ran = compact({good, folder / "b.safetensors", folder / "none.safetensors", "-o",
                              folder / "out", "--capacity", "16"});

    CHECK(ran.exit_code == 1);
    CHECK(contains(ran.err, "dkv: " + folder / "b.safetensors" + ": "));
    CHECK(contains(ran.err, "dkv: " + folder / "none.safetensors" + ": "));
    CHECK(std::ranges::count(ran.err, '\n') == 2);
    CHECK(contains(ran.out, "3 files: 1 written, 2 failed; "));
    CHECK(fs::exists(folder / "out/a.safetensors"));
    CHECK(std::distance(fs::directory_iterator(folder / "out"), {}) == 1);
}

TEST_CASE("dkv compact of one file that fails is one line and nothing else") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors");
    auto const message = [&](std::vector<std::string> arguments) {
        auto const ran = compact(std::move(arguments));
        CHECK(ran.exit_code == 1);
        CHECK(ran.out.empty());
        CHECK(std::ranges::count(ran.err, '\n') == 1);
        return ran.err;
    };
    CHECK(contains(message({folder / "none", "-o", folder / "b"}), "No such file or directory"));
    CHECK(contains(message({input, "-o", input, "--capacity", "16"}), input));
    CHECK(contains(message({input, "-o", folder / "b", "--policy", "h2o", "--capacity", "16"}),
                   "h2o needs the queries of the last 80 tokens"));
    CHECK(contains(message({input, "-o", folder / "b", "--policy", "snapkvv"}),
                   "no policy is called \"snapkvv\""));
    write_file(folder / "other", "somebody's");
    CHECK(contains(message({input, "-o", folder / "other", "--capacity", "16"}), folder / "other"));
    CHECK(file_text(folder / "other") == "somebody's");
    CHECK_FALSE(fs::exists(folder / "b"));
}

TEST_CASE("dkv compact: outputs that would have one name are refused before anything is written") {
    TempDir const folder;
    fs::create_directories(folder / "x");
    auto const a = write_random_cache(folder / "a.safetensors");
    auto const b = write_random_cache(folder / "x/a.safetensors");
    auto const ran = compact({a, b, "-o", folder / "out", "--capacity", "16"});
    CHECK(ran.exit_code == 1);
    CHECK(ran.err ==
          "dkv: " + a + " and " + b + " would both become " + folder / "out/a.safetensors" + "\n");
}

TEST_CASE("dkv compact --dry-run writes nothing, not even a folder") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors");
    auto const ran =
        compact({input, "-o", folder / "out/", "--capacity", "16", "--dry-run", "--json"});
    REQUIRE(ran.exit_code == 0);
    auto const dry = Json::parse(ran.out).at("files").at(0);
    CHECK_FALSE(fs::exists(folder / "out"));

    REQUIRE(compact({input, "-o", folder / "out/", "--capacity", "16"}).exit_code == 0);
    CHECK(fs::file_size(folder / "out/a.safetensors") == dry.at("file_bytes_after"));
}

TEST_CASE("dkv compact --bytes is what the file takes at most, with units") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors");
    auto const ran = compact({input, "-o", folder / "b", "--policy", "snapkv", "--bytes", "10KiB"});
    REQUIRE(ran.exit_code == 0);
    CHECK(fs::file_size(folder / "b") <= 10 * 1024);
}

TEST_CASE("dkv compact that is interrupted exits 130 and leaves no output") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors");
    FakeSidecar unasked;
    auto const ran = run_dkv({"compact", input, "-o", folder / "b", "--capacity", "40"}, unasked,
                             [](cli::Environment& world) {
                                 world.catch_interrupts = [] { return [] { return true; }; };
                             });
    CHECK(ran.exit_code == 130);
    CHECK(ran.err == "dkv: interrupted\n");
    CHECK(std::distance(fs::directory_iterator(folder.path()), {}) == 1);
}

TEST_CASE("dkv convert: every row as it is, and the way back") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors");
    auto const ran =
        dkv_files({"convert", input, "-o", folder / "b.safetensors", "--format", "hf"});
    REQUIRE(ran.exit_code == 0);
    CHECK(contains(ran.out, ": all 80 tokens, "));
    CHECK(contains(ran.out, "dkv → hf"));
    auto const there =
        dkv_files({"convert", folder / "b.safetensors", "-o", folder / "c.safetensors"});
    CHECK(there.exit_code == 0);

    CHECK(dkv_files({"convert", input, "-o", folder / "b.safetensors"}).err ==
          "dkv: " + folder / "b.safetensors" + " is there already; --force writes over it\n");
    CHECK(dkv_files({"convert", input, "-o", input, "--force"}).err ==
          "dkv: " + input + ": the output cannot be the input\n");
}

TEST_CASE("dkv convert writes what the named mlx-lm reads, else the newest") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors", 1);
    auto const written = [&](std::string const& from, std::vector<std::string> const& flags) {
        std::vector<std::string> arguments{"convert", from, "-o", folder / "out", "--force"};
        arguments.insert(arguments.end(), flags.begin(), flags.end());
        auto const ran = dkv_files(arguments);
        REQUIRE(ran.exit_code == 0);
        auto const opened = open_cache(folder / "out");
        REQUIRE(opened);
        CHECK(contains(ran.out,
                       "mlx-lm 0.32 and later read it: --format mlx-lm@0.31 is for older "
                       "ones") ==
              (flags.size() == 2 && file_format(flags[1]) == FileFormat::MlxLm));
        return opened.value()->facts().format;
    };
    CHECK(written(input, {"--format", "mlx-lm"}) == FileFormat::MlxLm);
    CHECK(written(input, {"--format", "mlx-lm@0.32.2"}) == FileFormat::MlxLm);
    CHECK(written(input, {"--format", "mlx-lm@0.29.1"}) == FileFormat::MlxLm031);
    std::filesystem::copy_file(folder / "out", folder / "old");
    // A compacted one is not taken for a prompt of its own.
    REQUIRE(compact({input, "-o", folder / "cut", "--policy", "knorm", "--capacity", "16",
                     "--format", "mlx-lm", "--rope-theta", "10000"})
                .exit_code == 0);
    CHECK(
        compact({folder / "cut", "-o", folder / "x", "--policy", "knorm", "--capacity", "9"}).err ==
        "dkv: " + folder / "cut" +
            ": tokens are missing from it already: compact the cache that it was "
            "made of\n");
    CHECK(contains(dkv_files({"diff", input, folder / "cut"}).err,
                   "do not say which tokens they have"));
    CHECK(contains(dkv_files({"inspect", folder / "cut"}).out, "16 tokens, kept of 80"));
    // A file stays of its generation.
    CHECK(written(folder / "old", {}) == FileFormat::MlxLm031);
    auto const wrong = dkv_files({"convert", input, "-o", folder / "out", "--format", "mlx-lm@x"});
    CHECK(wrong.exit_code == 2);
    CHECK(contains(wrong.err, "mlx-lm@x not in {dkv,hf,"));
}

TEST_CASE("dkv convert keeps a compacted cache as it is, and dkv diff finds them the same") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors");
    REQUIRE(compact({input, "-o", folder / "b", "--capacity", "16"}).exit_code == 0);
    REQUIRE(dkv_files({"convert", folder / "b", "-o", folder / "c"}).exit_code == 0);

    auto const same = dkv_files({"diff", folder / "b", folder / "c"});
    CHECK(same.exit_code == 0);
    CHECK(contains(same.out, "attention unknown"));
    CHECK(contains(same.out, "Both keep the same tokens.\n"));

    auto const json = Json::parse(dkv_files({"diff", input, folder / "b", "--json"}).out);
    CHECK(json.at("same") == false);
    CHECK(json.at("window") == 8);
    CHECK(json.at("total").at("a").at("mass_kept") == 1.0);
    CHECK(json.at("total").at("b").at("mass_kept") < 1.0);
    CHECK(json.at("total").at("b").at("only_here") == 0);
    CHECK(json.at("total").at("b").at("entries") == 16 * 2 * 3);

    auto const policies =
        dkv_files({"diff", folder / "b", "--against", "snapkv-ref", "--capacity", "16"});
    CHECK(policies.err ==
          "dkv: " + folder / "b" + ": compacted already: policies choose from a whole prompt\n");
    CHECK(dkv_files({"diff", input}).err ==
          "dkv: give a second FILE, or --against with a policy (see 'dkv diff --help')\n");
}

TEST_CASE("progress: how many files, how far, how fast, how long yet") {
    cli::Style const style{.color = false, .unicode = false, .columns = 80, .rows = 24};
    CHECK(cli::progress_text(
              {.files = 1, .files_done = 0, .bytes = 100, .bytes_done = 25, .seconds = 0.1},
              style) == "######                    25.0 %");
    CHECK(cli::progress_text({.files = 3,
                              .files_done = 1,
                              .bytes = 4U << 20U,
                              .bytes_done = 1U << 20U,
                              .seconds = 2},
                             style) ==
          "1/3 files  ######                    25.0 %  512.0 KiB/s  6.0 s left");
    CHECK(cli::progress_text({}, style) == "                           0.0 %");
}

TEST_CASE("progress: a bar on a terminal is drawn over itself and gone at the end") {
    TempDir const folder;
    auto const input = write_random_cache(folder / "a.safetensors");
    FakeSidecar unasked;
    auto const ran =
        run_dkv({"compact", input, "-o", folder / "b", "--capacity", "40", "--window", "8"},
                unasked, [](cli::Environment& world) { world.err_is_terminal = true; });
    REQUIRE(ran.exit_code == 0);
    CHECK(contains(ran.err, "\r"));
    CHECK(contains(ran.err, "100.0 %"));
    CHECK(ran.err.ends_with("\r\x1b[K"));
}
