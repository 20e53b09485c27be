// One table of parameters (protocol/policy/parameters.inc): whatever lists them has every one.
#include "protocol/policy/parameters.h"

#include <fstream>
#include <sstream>

#include <doctest/doctest.h>

#include "cli/app.h"
#include "cli/completion.h"
#include "cli/render/policies.h"
#include "sidecar/config/config.h"

using namespace dkv;
using namespace dkv::cli;

namespace {

std::string page(std::string const& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

}  // namespace

TEST_CASE("every parameter is a flag of what takes a policy, with the table's line of help") {
    Environment environment;
    environment.add_daemon_flags = add_flags;
    Program const program(environment);
    for (auto const& path : {"compact", "plan", "diff", "sweep", "serve"}) {
        CAPTURE(path);
        auto const* const command = program.app.get_subcommand(path);
        for (Parameter const& row : parameters()) {
            CAPTURE(row.name);
            auto const* const option = command->get_option_no_throw(row.flag());
            REQUIRE(option != nullptr);
            CHECK(option->get_description() == row.brief);
        }
    }
    auto const* const set = program.app.get_subcommand("policy")->get_subcommand("set");
    for (Parameter const& row : parameters())
        CHECK(set->get_option_no_throw(row.flag()) != nullptr);
}

TEST_CASE("every parameter is a row of POLICIES.md and a paragraph of both man pages") {
    auto const policies = page(DKV_POLICIES_PAGE);
    auto const dkv = page(DKV_MAN_FOLDER "/man1/dkv.1");
    auto const dkvd = page(DKV_MAN_FOLDER "/man8/dkvd.8");
    for (Parameter const& row : parameters()) {
        CAPTURE(row.name);
        CHECK(policies.find("`" + std::string(row.name) + "`") != std::string::npos);
        std::string flag;
        for (char const c : row.flag())
            flag += c == '-' ? std::string("\\-") : std::string(1, c);
        CHECK(dkv.find(".TP\n\\fB" + flag + "\\fR\n") != std::string::npos);
        CHECK(dkvd.find(".TP\n\\fB" + flag + "\\fR\n") != std::string::npos);
    }
}

TEST_CASE("what a value may be is said in words, and what it may not be is refused") {
    CHECK(parameter("window").allowed() == "1 … 1024, at most capacity");
    CHECK(parameter("kernel").allowed() == "odd, 1 … 63");
    CHECK(parameter("reduce").allowed() == "mean, max or sum");
    CHECK(parameter("query_norm").allowed() == "on or off");
    CHECK(parameter("ratio").allowed() == "above 0, at most 1");
    CHECK(parameter("ratio").range.holds(1));
    CHECK_FALSE(parameter("ratio").range.holds(0));
    CHECK_FALSE(parameter("kernel").range.holds(8));
    CHECK_FALSE(parameter("r_max").range.holds(std::numeric_limits<double>::infinity()));
    CHECK_FALSE(parameter("r_min").range.holds(std::numeric_limits<double>::quiet_NaN()));
}
