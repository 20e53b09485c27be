// How engines get to a state, message by right message; and a bystander whose prompts must come out
// right whatever the others do.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tests/fuzz/engine.h"
#include "tests/fuzz/messages.h"
#include "tests/fuzz/oracle.h"

namespace dkv::fuzz {

/// Where a walk leads: an engine that is not attached, one without a session, or a session's state.
struct Target {
    bool is_attached = true;
    std::optional<SessionState> state = {};
    std::uint32_t layers = 0;  ///< That have come, in Prefill.

    std::string name() const;
};
/// Every state of the state table, and what is before them.
std::vector<Target> all_targets();

class Walker {
public:
    Walker(World& world, Oracle& oracle, Random& random)
        : world_(world), oracle_(oracle), random_(random) {}

    /// From wherever the engine is. Afterwards the sidecar says that it is there.
    void lead(Engine& engine, Target const& target);
    /// The next message of a prompt that goes its way; rows are compared before it is adopted.
    /// Attaches first, if the engine was detached.
    void advance(Engine& engine);
    /// Until the workers have nothing more to say of the prompt.
    void settle(Engine const& engine);
    /// What the sidecar says of the engine's prompt; nothing: it does not know it (any more).
    std::optional<SessionState> state_of(Engine const& engine) const;
    /// Asks what is right, and is answered so.
    wire::BodyUnion tell(Engine const& engine, wire::BodyUnion const& body);

    std::uint64_t compared = 0;  ///< Prompts whose rows were.
    std::uint64_t last_session = 100;

private:
    Sender sender_of(Engine const& engine) const;
    void attach(Engine& engine);
    void lend(Engine& engine);
    void tidy(Engine& engine);
    void reset_policies(Engine const& engine);
    void open(Engine& engine);
    void send_layer(Engine& engine);
    void fail(Engine& engine);
    void plan(Engine& engine);
    void compare_rows(Engine const& engine);

    World& world_;
    Oracle& oracle_;
    Random& random_;
};

}  // namespace dkv::fuzz
