// What must be true of every answer, whatever was asked.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tests/fuzz/snapshot.h"
#include "tests/fuzz/world.h"

namespace dkv::fuzz {

struct Told {
    std::unique_ptr<wire::EnvelopeT> request;  ///< nullptr: it could not be read.
    std::unique_ptr<wire::EnvelopeT> answer;
    /// How many messages this one stands for: not after every one is all looked at.
    unsigned weight = 0;
    bool is_deep = false;  ///< It named an engine that is attached, over its own connection.

    bool is_refused() const noexcept { return answer->body.type == wire::Body::Failure; }
};

/// Of messages, those that were beyond the check of the instance.
struct Share {
    std::uint64_t deep = 0;
    std::uint64_t all = 0;

    void count(Told const& told) {
        all += told.weight;
        if (told.is_deep) deep += told.weight;
    }
};

class Oracle {
public:
    explicit Oracle(World& world) : world_(world), now_(world.look()) {}

    /// Asks, and looks at the answer and at everything before and after: a refusal changed nothing;
    /// what was done is what that message may do, to the engine and the session that it names.
    Told ask(Sender const& from, std::vector<std::uint8_t> const& bytes);
    /// After a worker's report: states moved along the table.
    void look_again();
    Snapshot const& now() const noexcept { return now_; }
    /// The last messages, and what was answered: for people.
    std::string trace() const;
    std::uint64_t messages = 0;
    Share share;
    std::map<SessionState, std::uint64_t> seen;  ///< How often each state was there.

private:
    bool is_deep(Told const& told, Snapshot const& after) const;
    void check_answer(Told const& told) const;
    void check_changes(Told const& told, Snapshot const& after) const;
    void check_states(Snapshot const& after, unsigned events_max) const;
    void check_event(World::Letter const& letter, Snapshot const& after) const;
    void take(Snapshot after);
    void note(Sender const& from, Told const& told);

    World& world_;
    Snapshot now_;
    std::deque<std::string> trace_;
    std::set<std::uint64_t> lending_;  ///< Engines whose regions changed since all was looked at.
    unsigned quiet_ = 0;               ///< Messages that changed nothing.
    std::map<Peer, std::set<std::uint64_t>> engines_of_;  ///< Who said hello over it.
};

}  // namespace dkv::fuzz
