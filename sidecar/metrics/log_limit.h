// A peer must not fill a disk with what it is refused: so many lines of one cause, then their
// number.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include <spdlog/spdlog.h>

namespace dkv {

/// For one thread.
class LogLimit {
public:
    static constexpr std::uint64_t kPeriod = 10'000;  ///< Milliseconds, as all times here.
    static constexpr std::uint32_t kLinesMax = 100;   ///< Of one cause in a period.

    /// `cause` is one of a few: it is remembered.
    void say(spdlog::level::level_enum level,
             std::string_view cause,
             std::uint64_t now,
             std::string_view text) {
        auto found = causes_.find(cause);
        if (found == causes_.end())
            found = causes_.emplace(std::string(cause), Cause{.begun = now}).first;
        Cause& known = found->second;
        if (now - known.begun >= kPeriod) {
            count(found->first, known);
            known = {.begun = now};
        }
        if (known.said >= kLinesMax) {
            ++known.left_out;
            return;
        }
        ++known.said;
        spdlog::log(level, "{}", text);
    }

    /// Says how many lines were left out in periods that are over.
    void tick(std::uint64_t now) {
        for (auto& [cause, known] : causes_) {
            if (known.left_out == 0 || now - known.begun < kPeriod) continue;
            count(cause, known);
            known = {.begun = now};
        }
    }

private:
    struct Cause {
        std::uint64_t begun = 0;
        std::uint32_t said = 0;
        std::uint64_t left_out = 0;
    };
    static void count(std::string const& cause, Cause const& known) {
        if (known.left_out > 0)
            spdlog::warn("{}: {} more lines like these in {} s were left out", cause,
                         known.left_out, kPeriod / 1000);
    }

    std::map<std::string, Cause, std::less<>> causes_;
};

}  // namespace dkv
