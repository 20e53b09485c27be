// dkv inspect on files that are really there; no sidecar is asked.
#include <algorithm>
#include <filesystem>
#include <fstream>

#include <doctest/doctest.h>

#include "tests/cli/fakes.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

constexpr Geometry kSmall{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 4};

std::string write_small(TempDir const& folder, std::string const& name, float value = 1) {
    auto const saved = saved_cache(kSmall, 80, 8, [&](std::uint32_t, std::string const& part) {
        std::string bytes;
        for (int i = 0; i < (part == "q_window" ? 4 * 8 * 4 : 2 * 80 * 4); ++i)
            bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
        return bytes;
    });
    auto path = folder / name;
    write_file(path, saved.text());
    return path;
}

Ran inspect(std::vector<std::string> arguments) {
    FakeSidecar unasked;
    unasked.fail = Error{ErrorCode::Unavailable, "unasked is asked"};
    arguments.insert(arguments.begin(), "inspect");
    return run_dkv(arguments, unasked);
}

}  // namespace

TEST_CASE("dkv inspect shows a cache's geometry, and layers that are alike on one line") {
    TempDir const folder;
    auto const ran = inspect({write_small(folder, "prompt.safetensors")});
    REQUIRE(ran.exit_code == 0);
    CHECK(contains(ran.out, "model     a small one\n"));
    CHECK(contains(ran.out, "geometry  3 layers, 4/2 heads, head_dim 4, f32\n"));
    CHECK(contains(ran.out, "prompt    80 tokens, all kept\n"));
    CHECK(contains(ran.out, "queries   of the last 8 tokens\n"));
    CHECK(contains(ran.out, "checks    unverified: no checksums; "));
    CHECK(contains(ran.out,
                   "LAYERS  TOKENS PER HEAD     KEPT  BYTES A LAYER\n"
                   "0-2                  80  100.0 %        5.0 KiB\n"));
}

TEST_CASE("dkv inspect --json has every number, layer by layer") {
    TempDir const folder;
    auto const ran = inspect({write_small(folder, "prompt.safetensors"), "--json"});
    auto const file = Json::parse(ran.out).at("files").at(0);
    CHECK(file.at("format") == "dkv");
    CHECK(file.at("prompt_tokens") == 80);
    CHECK(file.at("compacted") == false);
    CHECK(file.at("rows_bytes") == 3 * 80 * 2 * 2 * 4 * 4);
    CHECK(file.at("checksums") == false);
    CHECK(file.at("verified") == false);
    CHECK(file.at("by_layer").size() == 3);
    CHECK(file.at("by_layer").at(2).at("lengths") == Json{80, 80});
}

TEST_CASE("dkv inspect --verify reads every byte, and names the tensor that is not finite") {
    TempDir const folder;
    auto const good = inspect({write_small(folder, "good.safetensors"), "--verify"});
    CHECK(good.exit_code == 0);
    CHECK(contains(good.out, "unverified: no checksums; every byte was read, and K and V are"));

    auto const bad = inspect({write_small(folder, "bad.safetensors", NAN), "--verify"});
    CHECK(bad.exit_code == 1);
    CHECK(contains(bad.err, "bad.safetensors: "));
    CHECK(contains(bad.err, "layers.0.keys"));
    CHECK(bad.out.empty());
}

TEST_CASE("dkv inspect of a folder shows its caches, and fails for those that are broken") {
    TempDir const folder;
    write_small(folder, "b.safetensors");
    write_small(folder, "a.safetensors");
    write_file(folder / "notes.txt", "no cache");
    write_file(folder / "broken.safetensors", "no cache either");

    auto const ran = inspect({folder / "", "--json"});
    CHECK(ran.exit_code == 1);
    CHECK(contains(ran.err, "broken.safetensors: "));
    CHECK_FALSE(contains(ran.err, "notes.txt"));
    auto const files = Json::parse(ran.out).at("files");
    REQUIRE(files.size() == 3);
    CHECK(std::string(files.at(0).at("file")).ends_with("a.safetensors"));
    CHECK(std::string(files.at(1).at("file")).ends_with("b.safetensors"));
    CHECK(files.at(2).contains("error"));
}

TEST_CASE("dkv inspect says in one line what it cannot open") {
    TempDir const folder;
    auto const missing = inspect({folder / "missing"});
    CHECK(missing.exit_code == 1);
    CHECK(missing.err == "dkv: " + (folder / "missing") + ": No such file or directory\n");
    auto const empty = inspect({folder / ""});
    CHECK(empty.exit_code == 1);
    CHECK(contains(empty.err, "no saved cache is in this folder; with -r its folders count, too"));
    write_file(folder / "notes.txt", "no cache");
    CHECK(contains(inspect({folder / ""}).err,
                   "no saved cache is in this folder, and 1 file of none of the formats I know; "));
    // What would move a terminal's cursor does not come out of a name.
    auto const moving = folder / "a\n\x1b[2Jb";
    write_file(moving, "%PDF-1.7");
    auto const named = inspect({moving});
    CHECK(std::ranges::count(named.err, '\n') == 1);
    CHECK(contains(named.err, "a ?[2Jb: none of the formats I know"));
}

TEST_CASE("dkv inspect takes a vLLM folder as one cache, if only to say what is wrong") {
    TempDir const folder;
    std::filesystem::create_directories(folder / "store/0abc");
    for (int const layer : {0, 2}) {
        SavedFile file;
        file.add("kv_cache", "F32", {2, 3, 2, 2}, std::string(96, '\0'));
        write_file(folder / ("store/0abc/model.layers." + std::to_string(layer) +
                             ".self_attn.attn.safetensors"),
                   file.text());
    }
    std::string const wanted =
        "dkv: " + (folder / "store/0abc") + ": layer 1 is missing: the last one is 2\n";
    CHECK(inspect({folder / "store"}).err == wanted);
    CHECK(inspect({folder / "store/0abc"}).err == wanted);
    CHECK(inspect({"-r", folder / ""}).err == wanted);
    // Two prompts: each of them is a cache, and the folder around them is none.
    std::filesystem::create_directories(folder / "store/1def");
    std::filesystem::copy_file(folder / "store/0abc/model.layers.0.self_attn.attn.safetensors",
                               folder / "store/1def/model.layers.0.self_attn.attn.safetensors");
    auto const both = inspect({"-r", folder / "store", "--json"});
    CHECK(both.err == wanted);
    CHECK(Json::parse(both.out).at("files").size() == 2);
}

TEST_CASE("dkv inspect can be interrupted while it verifies") {
    TempDir const folder;
    auto const path = write_small(folder, "prompt.safetensors");
    FakeSidecar unasked;
    auto const ran = run_dkv({"inspect", path, "--verify"}, unasked, [](cli::Environment& world) {
        world.catch_interrupts = [] { return [] { return true; }; };
    });
    CHECK(ran.exit_code == 130);
    CHECK(ran.err == "dkv: interrupted\n");
}
