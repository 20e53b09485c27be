// Whether the sidecar lives and may be given work: what /healthz and /readyz say.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>

namespace dkv {

/// Written by the loop's thread, read by any.
class Health {
public:
    static constexpr std::uint64_t kSilenceMax = 10'000;  ///< Milliseconds without a tick.

    enum class State : std::uint8_t { Starting, Serving, Draining };

    void set(State state) noexcept { state_ = state; }
    State state() const noexcept { return state_; }
    /// The loop is at work. `now`: milliseconds, as below.
    void tick(std::uint64_t now) noexcept { ticked_at_ = now; }

    /// Why a supervisor should restart the sidecar; "": it lives.
    std::string why_dead(std::uint64_t now) const {
        if (state_ == State::Starting) return {};
        auto const silent = now - std::min(now, ticked_at_.load());
        if (silent <= kSilenceMax) return {};
        return "hung: the loop has not turned for " + std::to_string(silent / 1000) + " s";
    }
    /// Why it should be given no engine now; "": it may.
    std::string why_not_ready(std::uint64_t now) const {
        switch (state_.load()) {
            case State::Starting: return "starting: nothing is answered yet";
            case State::Draining: return "draining: open sessions end, and no new one is taken";
            case State::Serving: break;
        }
        return why_dead(now);
    }

private:
    std::atomic<State> state_ = State::Starting;
    std::atomic<std::uint64_t> ticked_at_ = 0;
};

}  // namespace dkv
