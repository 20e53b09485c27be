#include "sidecar/metrics/log_limit.h"

#include <memory>
#include <sstream>
#include <string>

#include <doctest/doctest.h>
#include <spdlog/sinks/ostream_sink.h>

namespace dkv {
namespace {

/// Takes what is logged while it lives.
struct Log {
    Log() : before(spdlog::default_logger()) {
        auto logger = std::make_shared<spdlog::logger>(
            "test", std::make_shared<spdlog::sinks::ostream_sink_st>(text));
        logger->set_pattern("%v");
        spdlog::set_default_logger(std::move(logger));
    }
    ~Log() { spdlog::set_default_logger(before); }
    std::size_t lines() const {
        auto const all = text.str();
        return static_cast<std::size_t>(std::count(all.begin(), all.end(), '\n'));
    }

    std::shared_ptr<spdlog::logger> before;
    std::ostringstream text;
};

TEST_CASE("of one cause there are a hundred lines in ten seconds, then their number") {
    Log log;
    LogLimit limit;
    for (int i = 0; i < 1000; ++i)
        limit.say(spdlog::level::warn, "Hello refused", 5000, "no");
    CHECK(log.lines() == 100);

    limit.say(spdlog::level::warn, "Detach refused", 5000, "another cause");
    CHECK(log.lines() == 101);

    limit.tick(14'000);
    CHECK(log.lines() == 101);
    limit.tick(15'000);
    limit.tick(15'500);
    CHECK(log.lines() == 102);
    CHECK(log.text.str().ends_with(
        "Hello refused: 900 more lines like these in 10 s were left out\n"));

    limit.say(spdlog::level::warn, "Hello refused", 15'600, "no");
    CHECK(log.lines() == 103);
}

}  // namespace
}  // namespace dkv
