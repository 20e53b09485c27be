// Valid sessions to every state, then one thing wrong. The seed is printed: DKV_FUZZ_SEED repeats a
// run, DKV_FUZZ_MESSAGES says how long it is.
#include <algorithm>
#include <cstdlib>

#include <doctest/doctest.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include "tests/fuzz/epoch.h"

namespace dkv::fuzz {
namespace {

constexpr std::uint64_t kEpochMessages = 10'000;  ///< A new sidecar after so many.

std::uint64_t setting(char const* name, std::uint64_t otherwise) {
    char const* const text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

/// Lines of a log are lines: nothing that a peer says breaks out of them.
class CheckedLog final : public spdlog::sinks::base_sink<std::mutex> {
public:
    std::string broken;

protected:
    void sink_it_(spdlog::details::log_msg const& line) override {
        std::string const text(line.payload.begin(), line.payload.end());
        if (broken.empty() && !is_clean(text)) broken = text;
    }
    void flush_() override {}
};

struct LogGuard {
    LogGuard() : before(spdlog::default_logger()), sink(std::make_shared<CheckedLog>()) {
        spdlog::set_default_logger(std::make_shared<spdlog::logger>("fuzz", sink));
    }
    ~LogGuard() { spdlog::set_default_logger(before); }
    std::shared_ptr<spdlog::logger> before;
    std::shared_ptr<CheckedLog> sink;
};

/// What no walk reached, by name.
std::string untried(Counts& counts) {
    std::string all;
    for (auto const wrong : kWrongs)
        if (counts.wrongs[wrong] == 0) all += std::string(name_of(wrong)) + "; ";
    for (auto const& target : all_targets()) {
        if (target.state && counts.seen[*target.state] == 0)
            all += "no session was " + target.name() + "; ";
        for (auto const& command : all_commands())
            if (counts.tried[target.name()][command.name] == 0)
                all += std::string(command.name) + " while " + target.name() + "; ";
    }
    return all;
}

TEST_CASE("no message breaks a sidecar: valid sessions to every state, then one thing wrong") {
    auto const seed = setting("DKV_FUZZ_SEED", 1);
    auto const messages = setting("DKV_FUZZ_MESSAGES", 100'000);
    MESSAGE("DKV_FUZZ_SEED=" << seed << " DKV_FUZZ_MESSAGES=" << messages);
    CAPTURE(seed);
    LogGuard const log;
    Random random(seed);
    Counts counts;

    while (counts.messages < messages) {
        Epoch epoch(random, counts);
        epoch.run(std::min(kEpochMessages, messages - counts.messages));
        if (random.chance(70))
            epoch.end();
        else
            epoch.close();  // A sidecar that ends with engines attached.
    }

    MESSAGE(counts.messages << " messages, " << counts.share.deep * 100 / counts.share.all
                            << " % beyond the instance check, " << counts.refused << " refused; "
                            << counts.compared << " prompts compared row by row, "
                            << counts.bystanders << " of them the bystander's");
    CHECK(log.sink->broken == "");
    CHECK(counts.share.deep * 2 >= counts.share.all);
    CHECK(counts.bystanders * 1000 >= counts.messages);
    CHECK(untried(counts) == "");
}

}  // namespace
}  // namespace dkv::fuzz
