// dkv diff on a small saved prompt; no sidecar is asked.
#include <random>

#include <doctest/doctest.h>

#include "tests/cli/fakes.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

using namespace dkv;
using namespace dkv::test;
using cli::Json;

namespace {

struct SavedPrompt {
    SavedPrompt() {
        Geometry const geometry{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 4};
        std::mt19937 random(3);
        std::normal_distribution<float> normal;
        auto const saved = saved_cache(geometry, 80, 8, [&](std::uint32_t, std::string part) {
            std::string bytes;
            for (int i = 0; i < (part == "q_window" ? 4 * 8 * 4 : 2 * 80 * 4); ++i) {
                float const value = normal(random);
                bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
            }
            return bytes;
        });
        write_file(path, saved.text());
    }
    TempDir folder;
    std::string path = folder / "prompt.safetensors";
};

Ran run_diff(SavedPrompt const& prompt, std::vector<std::string> more) {
    FakeSidecar unasked;
    unasked.fail = Error{ErrorCode::Unavailable, "unasked is asked"};
    std::vector<std::string> arguments{"diff", prompt.path};
    arguments.insert(arguments.end(), more.begin(), more.end());
    auto const ran = run_dkv(arguments, unasked);
    CHECK(unasked.connects == 0);
    return ran;
}

}  // namespace

TEST_CASE("dkv diff tells a native policy from the published one") {
    SavedPrompt const prompt;
    std::vector<std::string> const flags{
        "--policy",   "streamingllm", "--against", "streamingllm-ref",
        "--capacity", "16",           "--window",  "8"};
    auto const ran = run_diff(prompt, flags);
    REQUIRE(ran.exit_code == 0);
    CHECK(contains(ran.out, "a small one, 80 tokens, capacity 16, window 8\n"));
    CHECK(contains(ran.out, "A streamingllm: 3.0 KiB of K and V"));
    CHECK(contains(ran.out, "B streamingllm-ref: 6.0 KiB of K and V"));
    CHECK(contains(ran.out, "it stores a KV head's rows once for each query head"));

    auto with_json = flags;
    with_json.push_back("--json");
    auto const json = Json::parse(run_diff(prompt, with_json).out);
    CHECK(json.at("same") == false);
    CHECK(json.at("layers").size() == 3);
    CHECK(json.at("total").at("a").at("bytes") == 3072);
    CHECK(json.at("total").at("b").at("bytes") == 6144);
    CHECK(json.at("total").at("a").at("only_here") == 3 * 4 * 4);
    CHECK(json.at("total").at("a").at("mass_kept").is_number());
}

TEST_CASE("dkv diff refuses in one line what it cannot compare") {
    SavedPrompt const prompt;
    auto const unknown = run_diff(prompt, {"--against", "snapkv-reff"});
    CHECK(unknown.exit_code == 1);
    CHECK(contains(unknown.err, "no policy is called \"snapkv-reff\""));
    auto const h2o = run_diff(prompt, {"--policy", "h2o", "--against", "h2o-kvpress", "--capacity",
                                       "16", "--window", "8"});
    CHECK(h2o.exit_code == 1);
    CHECK(contains(
        h2o.err,
        "prompt.safetensors: h2o needs the queries of the last 80 tokens, and the file has 8\n"));
    CHECK(run_diff(prompt, {}).exit_code == 2);
}
