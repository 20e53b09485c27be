#include "sidecar/config/config.h"

#include <CLI/CLI.hpp>
#include <doctest/doctest.h>

#include "tests/support/results.h"

namespace dkv {
namespace {

Config parse(std::string const& line) {
    Config config;
    CLI::App app;
    add_flags(app, config);
    app.parse(line);
    return config;
}

std::string refusal(Config const& config) {
    auto const checked = check(config);
    REQUIRE(!checked);
    return checked.error().message;
}

TEST_CASE("flags fill the configuration; what is left out keeps its default") {
    auto const config = parse(
        "--endpoint ipc:///run/x.sock --policy snapkv --capacity 256 --window 16 --kernel 5 "
        "--pool avg --reduce max --r-max 4 --r-min 0.2 --update-interval 2 --sinks 8 --beta 10 "
        "--threads 3 --heartbeat-ms 200 --metrics 9464 --log-level debug "
        "--control tcp://0.0.0.0:9465 --secret-key /k/dkv.key_secret --clients /k/clients");

    CHECK(config.endpoint == "ipc:///run/x.sock");
    CHECK(config.policy.name == "snapkv");
    CHECK(config.policy.capacity == 256);
    CHECK(config.policy.window == 16);
    CHECK(config.policy.kernel == 5);
    CHECK(config.policy.pool == Pool::Avg);
    CHECK(config.policy.reduce == GroupReduce::Max);
    CHECK(config.policy.r_max == 4.0);
    CHECK(config.policy.r_min == 0.2);
    CHECK(config.policy.update_interval == 2);
    CHECK(config.policy.sinks == 8);
    CHECK(config.policy.beta == 10.0);
    CHECK(config.threads == 3);
    CHECK(config.heartbeat_ms == 200);
    CHECK(config.metrics_address == "9464");
    CHECK(config.log_level == "debug");
    CHECK(config.control == "tcp://0.0.0.0:9465");
    CHECK(config.secret_key_file == "/k/dkv.key_secret");
    CHECK(config.clients_folder == "/k/clients");
    REQUIRE(check(config));

    auto const plain = parse("");
    CHECK(plain.policy.name == "auto");
    CHECK(!plain.policy.capacity);
    REQUIRE(check(plain));
}

TEST_CASE("the backend and how long an event is waited for are flags, and checked") {
    auto config = parse("--backend cuda --event-timeout-ms 250");
    CHECK(config.backend == "cuda");
    CHECK(config.event_timeout_ms == 250);
    REQUIRE(check(config));
    config.backend = "rocm";
    CHECK(refusal(config) == "--backend 'rocm' is none of auto, cpu, cuda");
    config.backend = "auto";
    config.event_timeout_ms = 0;
    CHECK(refusal(config) == "--event-timeout-ms 0 is outside 1 … 600000");
}

TEST_CASE("granularity, norms, sizes, presets and profiles are flags too") {
    auto const config = parse(
        "--granularity layer-head --score-norm layer-nosink --query-norm on --ratio 0.25 "
        "--preset paper --profile " DKV_SHIPPED_PROFILE " --profile-alpha 1.5 --profile-floor 0.1");
    CHECK(config.policy.granularity == Granularity::LayerHead);
    CHECK(config.policy.score_norm == ScoreNorm::LayerNoSink);
    CHECK(config.policy.query_norm == true);
    CHECK(config.policy.ratio == 0.25);
    CHECK(config.policy.preset == "paper");
    REQUIRE(config.policy.profile);
    CHECK(config.policy.profile->layers == 30);
    CHECK(config.policy.profile_alpha == 1.5);
    CHECK(config.policy.profile_floor == 0.1);
    REQUIRE(check(config));

    CHECK(parse("--bytes 512MiB").policy.bytes == 536870912U);
    CHECK(parse("--bytes 3kb").policy.bytes == 3072U);
    CHECK(parse("--keep-mass 0.9").policy.keep_mass == 0.9);
    CHECK(refusal(parse("--ratio 0.5 --capacity 64")) ==
          "capacity and ratio are given: one size is enough");
    CHECK(refusal(parse("--preset thesis")) == "no preset is called \"thesis\"; there is paper");
    CHECK_THROWS_AS(parse("--granularity token"), CLI::ValidationError);
    CHECK_THROWS_AS(parse("--bytes much"), CLI::ValidationError);
    CHECK_THROWS_WITH_AS(parse("--profile /nonexistent"),
                         "--profile: /nonexistent cannot be read: No such file or directory",
                         CLI::ValidationError);
}

TEST_CASE("an unknown word for a flag is refused by the parser") {
    CHECK_THROWS_AS(parse("--pool median"), CLI::ValidationError);
    CHECK_THROWS_AS(parse("--capacity many"), CLI::ConversionError);
}

TEST_CASE("check refuses what cannot work, naming the flag and the value") {
    Config config;
    config.endpoint = "http://x";
    CHECK(refusal(config) ==
          "endpoint 'http://x' is neither ipc://PATH, tcp://HOST:PORT nor inproc://NAME");
    config.endpoint = "inproc://x";
    CHECK(refusal(config) == "--endpoint 'inproc://x' cannot be reached from another process");

    config = {};
    config.policy.name = "h3o";
    CHECK(check(config).error().code == ErrorCode::NotFound);
    config = {};
    config.policy.kernel = 4;
    CHECK(check(config).error().code == ErrorCode::InvalidArgument);
    config = {};
    config.policy.capacity = 8;
    CHECK(check(config).error().code == ErrorCode::InvalidArgument);

    config = {};
    config.threads = 5000;
    CHECK(refusal(config) == "--threads 5000 is above 1024");
    config = {};
    config.heartbeat_ms = 1;
    CHECK(refusal(config) == "--heartbeat-ms 1 is outside 10 … 600000");
    config = {};
    config.metrics_address = "localhost:http";
    CHECK(refusal(config) == "--metrics 'localhost:http' is neither HOST:PORT nor PORT");
    config = {};
    config.log_level = "loud";
    CHECK(refusal(config) == "--log-level 'loud' is none of trace, debug, info, warn, error, off");
    config = {};
    config.limits.sessions_max = 0;
    CHECK(refusal(config) == "limit sessions_max is 0");
}

TEST_CASE("a tcp endpoint beyond loopback is refused, and --control named for it") {
    Config config;
    for (auto const* const endpoint :
         {"tcp://127.0.0.1:5555", "tcp://localhost:5555", "tcp://[::1]:5555"}) {
        config.endpoint = endpoint;
        CHECK(check(config));
    }
    for (std::string const endpoint :
         {"tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://gpu1:5555", "tcp://[::]:5555"}) {
        config.endpoint = endpoint;
        CHECK(refusal(config) == "--endpoint '" + endpoint +
                                     "' is open to other machines, and engines attach over ipc:// "
                                     "alone; for controllers with keys: --control " +
                                     endpoint);
    }
}

TEST_CASE("control is tcp, and keys without it are refused") {
    Config config;
    config.control = "tcp://0.0.0.0:5555";
    CHECK(check(config));
    for (std::string const endpoint : {"ipc:///tmp/s", "0.0.0.0:5555", "tcp://5555"}) {
        config.control = endpoint;
        CHECK(refusal(config) == "--control '" + endpoint + "' is not tcp://HOST:PORT");
    }
    config.control = "";
    config.clients_folder = "/k";
    CHECK(refusal(config) == "--clients is for --control, which is not given");
    config.secret_key_file = "/k";
    CHECK(refusal(config) == "--secret-key is for --control, which is not given");
}

}  // namespace
}  // namespace dkv
