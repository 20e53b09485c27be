#include "cli/doctor/bundle.h"

#include <doctest/doctest.h>

using namespace dkv::cli;
using Json = nlohmann::ordered_json;

namespace {

std::string cleaned(doctor::Variables const& variables, std::string const& text) {
    return doctor::Scrubber(variables).clean(text);
}

}  // namespace

TEST_CASE("a secret's value is taken out wherever it stands, by its variable's name in any case") {
    doctor::Variables const variables{{"HF_TOKEN", "abcd"},
                                      {"HF_TOKEN_LONG", "abcd-efgh"},
                                      {"my_Password", "pass word"},
                                      {"TINY_KEY", "1"},
                                      {"EDITOR", "vi-abc"}};

    CHECK(cleaned(variables, "abcd-efgh abcd pass word 1 vi-abc") ==
          "(removed) (removed) (removed) 1 vi-abc");
    Json const json{{"a", {1, "abcd"}}, {"abcd", nullptr}, {"b", true}};
    CHECK(doctor::Scrubber(variables).clean(json) ==
          Json{{"a", {1, "(removed)"}}, {"(removed)", nullptr}, {"b", true}});
}

TEST_CASE("home folders become ~, and passwords in URLs go") {
    doctor::Variables const variables{{"HOME", "/data/me"}};

    CHECK(cleaned(variables, "/data/me/x /data/me /data/mean /home/you/y:/home/we") ==
          "~/x ~ /data/mean ~/y:~");
    CHECK(cleaned(variables, "https://me:pw@hub/x ipc:///run/a@b") ==
          "https://(removed)@hub/x ipc:///run/a@b");
}

TEST_CASE(
    "of the environment what bears on dkv is shown, and secrets' names without their values") {
    doctor::Variables const variables{{"DKV_ENDPOINT", "ipc:///x"},
                                      {"HF_TOKEN", "abcd"},
                                      {"SHELL", "/bin/sh"},
                                      {"AWS_SECRET", "abcd"}};

    CHECK(doctor::variables_json(variables) ==
          Json{{"DKV_ENDPOINT", "ipc:///x"}, {"HF_TOKEN", "(removed)"}});
}
