#include "sidecar/config/config_file.h"

#include <cstdlib>
#include <fstream>

#include <doctest/doctest.h>

#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

namespace dkv {
namespace {

/// A file of one test, and what dkvd makes of it.
struct File {
    explicit File(std::string const& text) : path(dir / "dkvd.toml") {
        std::ofstream(path) << text;
    }
    Result<Config> read(std::vector<std::string> arguments = {}) const {
        arguments.insert(arguments.end(), {"--config", path});
        return read_config(arguments);
    }
    /// Without the file's name in front.
    std::string refusal() const {
        auto const config = read();
        REQUIRE(!config);
        auto const& message = config.error().message;
        return message.starts_with(path) ? message.substr(path.size()) : message;
    }

    test::TempDir dir;
    std::string path;
};

TEST_CASE("a file fills the flags that the command line does not give") {
    File const good(
        "# the night shift\npolicy = \"dynamickv\"\nr-max = 4\nquery-norm = true\n"
        "log-level = \"warn\"\nbytes = \"512MiB\"\n");
    auto const config = good.read({"--log-level", "error"});
    REQUIRE(config);
    CHECK(config.value().policy.name == "dynamickv");
    CHECK(config.value().policy.r_max == 4.0);
    CHECK(config.value().policy.query_norm == true);
    CHECK(config.value().policy.bytes == 536870912U);
    CHECK(config.value().log_level == "error");
    CHECK(config.value().config_file == good.path);
}

TEST_CASE("an empty file changes nothing, and a folder is not one") {
    CHECK(File("").read());
    test::TempDir const folder;
    auto const refused = read_config({"--config", folder.path()});
    REQUIRE(!refused);
    CHECK(refused.error().message == "--config '" + folder.path() + "' cannot be read");
}

TEST_CASE("what is wrong in a file is named with its line, and with what was expected") {
    CHECK(File("\n\ncapactiy = 1\n").refusal() == ":3: no key 'capactiy': did you mean capacity?");
    CHECK(File("\ncapacity = \"many\"\n").refusal() == ":2: capacity is 'many', expected a count");
    CHECK(File("capacity = -1\n").refusal() == ":1: capacity is '-1', expected a count");
    CHECK(File("r-max = \"x\"\n").refusal() == ":1: r-max is 'x', expected a number");
    CHECK(File("pool = \"median\"\n").refusal() ==
          ":1: pool is 'median', expected one of avg, max");
    CHECK(File("capacity = [1, 2]\n").refusal() == ":1: capacity is an array, expected a count");
    CHECK(File("[policy]\nname = \"x\"\n").refusal() == ":1: policy is a table, expected a string");
    CHECK(File("config = \"/other\"\n").refusal() ==
          ":1: no key 'config': dkvd --help lists them, without the dashes");
    CHECK(File("zzzzzzzz = 1\n").refusal() ==
          ":1: no key 'zzzzzzzz': dkvd --help lists them, without the dashes");
    CHECK(File("threads = 1\nheartbeat-ms = 5\n").refusal() ==
          ":2: --heartbeat-ms 5 is outside 10 … 600000");
    CHECK(File("window = 64\ncapacity = 16\n").refusal().starts_with(":2: capacity is 16"));
    CHECK(File("policy = \n").refusal().starts_with(":1: not TOML: "));
    CHECK(File("profile = \"/nonexistent\"\n").refusal() ==
          ":1: --profile: /nonexistent cannot be read: No such file or directory");

    auto const none = read_config({"--config", "/nonexistent.toml"});
    REQUIRE(!none);
    CHECK(none.error().code == ErrorCode::NotFound);
    CHECK(none.error().message ==
          "--config '/nonexistent.toml' cannot be read: No such file or directory");
}

TEST_CASE("words that are not flags of dkvd are passed over: those of dkv serve") {
    auto const config = read_config({"--json", "serve", "--threads", "3"});
    REQUIRE(config);
    CHECK(config.value().threads == 3);
}

TEST_CASE("DKV_ENDPOINT goes before the file, and a flag before both") {
    File const good("endpoint = \"ipc:///tmp/file\"\n");
    CHECK(good.read().value().endpoint == "ipc:///tmp/file");
    ::setenv("DKV_ENDPOINT", "ipc:///tmp/environment", 1);

    auto const config = good.read();
    auto const flag = good.read({"--endpoint", "ipc:///tmp/flag"});

    ::unsetenv("DKV_ENDPOINT");
    CHECK(config.value().endpoint == "ipc:///tmp/environment");
    CHECK(flag.value().endpoint == "ipc:///tmp/flag");
}

TEST_CASE("a file alone is checked whole, also where the environment overrides it") {
    ::setenv("DKV_BACKEND", "cpu", 1);
    File const wrong("backend = \"gpu\"\n");
    CHECK(wrong.read());

    auto const refused = read_config_file(wrong.path);

    ::unsetenv("DKV_BACKEND");
    REQUIRE(!refused);
    CHECK(refused.error().message == wrong.path + ":1: --backend 'gpu' is none of auto, cpu, cuda");
    CHECK(read_config_file(File("backend = \"cpu\"\n").path).value().backend == "cpu");
}

TEST_CASE("what cannot change while dkvd runs is named, and the rest may change") {
    Config before;
    Config after;
    after.policy.name = "snapkv";
    after.log_level = "debug";
    after.event_timeout_ms = 5;
    after.drain_ms = 1;
    CHECK(fixed_changes(before, after).empty());

    after.threads = 3;
    after.metrics_address = "9464";
    CHECK(fixed_changes(before, after) == std::vector<std::string>{"--threads", "--metrics"});
}

}  // namespace
}  // namespace dkv
