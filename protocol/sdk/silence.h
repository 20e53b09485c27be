// Keeps a sidecar that does not answer from costing every prompt its whole deadline: after the
// first one, new sessions are refused without waiting until it has answered again.
#pragma once

#include <optional>
#include <string>

#include "protocol/base/error.h"
#include "protocol/sdk/clock.h"

namespace dkv::sdk {

/// Two kinds of silence. Hung: nothing at all was heard since a question; anything that is heard
/// ends it, and the connection's thread goes on asking. Unanswered: heartbeats are answered and a
/// request is not; the next answer to a request ends it, or a prompt tries again after a while.
/// Work that takes longer than its deadline is neither.
class Silence {
public:
    /// A question went out. The oldest that is open counts.
    void ask(Deadline now);
    /// The line is gone, and the open questions with it. A hung sidecar stays so.
    void forget_questions() { asked_at_.reset(); }
    /// This process was stopped for a while: that was not the sidecar's silence.
    void excuse(Deadline now);

    /// Anything came from the sidecar. True: it was hung.
    bool hear();
    /// A request was answered, in time or late.
    void answer();
    /// Nothing listens there any more, so nothing is silent.
    void clear();

    /// A wait that began at `begin` ran into its deadline. True: the sidecar is hung now.
    bool run_out(Deadline begin, Deadline now);
    /// The same where it was the answer to a request that was waited for: "RegisterRegion".
    bool run_out_unanswered(std::string request, Deadline begin, Deadline now);
    /// Whatever was asked since `since` was not answered.
    void hang(Deadline since, Deadline now);

    bool is_hung() const noexcept { return held_ && held_->hung; }
    /// Whether a new session is refused instead of waiting for an answer.
    bool holds(Deadline now) const;
    /// DeadlineExceeded, with the time of the next question. Only while it holds.
    Error reason(std::string const& endpoint, Deadline now) const;

    std::optional<Deadline> asked_at() const noexcept { return asked_at_; }
    /// When a hung sidecar is to be asked again, now that it was just asked; `most` from now at the
    /// latest. Steps double.
    Deadline next_probe(Deadline now, Clock::duration most = Clock::duration::max());

private:
    struct Held {
        bool hung = false;
        std::string request;  // That was not answered; empty when hung.
        Deadline since{};
        Deadline again_at{};
        Clock::duration step{};
    };
    void lengthen(Held& held) const;

    std::optional<Deadline> asked_at_;
    std::optional<Held> held_;
};

}  // namespace dkv::sdk
