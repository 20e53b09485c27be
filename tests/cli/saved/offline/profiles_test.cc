// A saved cache's own profile: found by the fingerprint of its model's weights.
#include "cli/saved/offline/profiles.h"

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include <doctest/doctest.h>

#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

using namespace dkv;

namespace {

namespace fs = std::filesystem;

/// DKV_PROFILES and DKV_CACHE as long as this lives: nothing of the machine's own is found.
struct Folders {
    Folders() {
        ::setenv("DKV_PROFILES", folder.path().c_str(), 1);
        ::setenv("DKV_CACHE", (folder / "cache").c_str(), 1);
    }
    ~Folders() {
        ::unsetenv("DKV_PROFILES");
        ::unsetenv("DKV_CACHE");
    }

    /// Two layers of two heads, with a surrogate of ones for heads of 8 dimensions.
    void write(std::string const& name, std::string const& weights) const {
        std::string layer;
        for (int i = 0; i < 2 * 37; ++i)
            layer += "803f";
        nlohmann::ordered_json const json = {
            {"format", "dkv-profile"},
            {"version", 1},
            {"model",
             {{"name", "tiny"},
              {"weights", weights},
              {"geometry",
               {{"layers", 2},
                {"compressed", {0, 1}},
                {"q_heads", 4},
                {"kv_heads", 2},
                {"head_dim", 8}}}}},
            {"granularity", "head"},
            {"alpha", 0.5},
            {"floor", 0.2},
            {"weights", {{1, 2}, {3, 4}}},
            {"surrogate",
             {{"version", 1},
              {"rope", {{"frequencies", {1.0}}, {"interleaved", false}}},
              {"features", 37},
              {"weights", {layer, layer}}}}};
        std::ofstream(folder / name) << json.dump();
    }

    test::TempDir folder;
};

CacheFacts facts_of(std::string const& fingerprint) {
    CacheFacts facts;
    facts.geometry = {.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 8};
    facts.prompt_tokens = 200;
    if (!fingerprint.empty()) facts.provenance["model_weights"] = fingerprint;
    return facts;
}

std::string profile_of(PolicyRequest const& request, std::string const& fingerprint) {
    auto const found = offline::with_own_profile(request, facts_of(fingerprint));
    return found.profile ? found.profile->name : "";
}

}  // namespace

TEST_CASE("auto and reuse get the profile that was made for the file's weights") {
    Folders const folders;
    std::ofstream(folders.folder / "a-broken.json") << "{";
    folders.write("b-other.json", "0000");
    folders.write("mine.json", "abcd");
    folders.write("twin.json", "abcd");

    CHECK(profile_of({.name = "auto"}, "abcd") == "mine");
    CHECK(profile_of({.name = "reuse"}, "abcd") == "mine");
    CHECK(profile_of({.name = "auto"}, "ffff").empty());
    CHECK(profile_of({.name = "auto"}, "").empty());
    CHECK(profile_of({.name = "dynamickv"}, "abcd").empty());
    auto const asked = std::make_shared<Profile>(Profile{.name = "asked", .weights = {}});
    CHECK(profile_of({.name = "auto", .profile = asked}, "abcd") == "asked");

    auto const params = offline::params_for({.name = "auto"}, facts_of("abcd"));
    REQUIRE(params);
    CHECK(params.value().profile->name == "mine");
}

TEST_CASE("a surrogate is in the file's order of dims, which the file has to say") {
    Folders const folders;
    folders.write("mine.json", "abcd");
    auto facts = facts_of("abcd");

    facts.rope.interleaved = true;
    auto const pairs = offline::params_for({.name = "reuse"}, facts);
    REQUIRE(pairs);
    CHECK(pairs.value().profile->surrogate->interleaved);

    facts.rope.order_known = false;
    auto const unknown = offline::params_for({.name = "auto"}, facts);
    REQUIRE_FALSE(unknown);
    CHECK(unknown.error().code == ErrorCode::Unsupported);
    CHECK(unknown.error().message ==
          "the profile's surrogate needs to know which dims of a key turn together, which the file "
          "does not say: say --rope-theta THETA, and --rope-interleaved where adjacent ones do; or "
          "--for this-question");
    CHECK(offline::params_for({.name = "auto", .purpose = Purpose::ThisQuestion}, facts));

    facts.rope.order_known = true;
    facts.stored.emplace().rotation_unknown = true;
    CHECK(offline::params_for({.name = "reuse"}, facts)
              .error()
              .message.starts_with("the profile's surrogate needs rows as the model has them"));
}
