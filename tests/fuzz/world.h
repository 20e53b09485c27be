// A whole server without a socket, its clock, and what it sent.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "protocol/base/peer.h"
#include "sidecar/rpc/server.h"
#include "tests/fuzz/gate.h"
#include "tests/fuzz/snapshot.h"
#include "tests/support/temp_dir.h"

namespace dkv::fuzz {

/// A connection, and what the kernel says of it.
struct Sender {
    Peer peer;
    std::optional<PeerCredentials> process;
};

class World final : private rpc::Outbox {
public:
    World();
    ~World() override;

    /// Delivers the bytes a millisecond later. The one answer to the sender, with the request's
    /// `id`; what else was sent is in `events`.
    std::unique_ptr<wire::EnvelopeT> ask(Sender const& from,
                                         std::vector<std::uint8_t> const& bytes,
                                         std::uint64_t id);
    /// The same moment, as a controller sees it.
    Snapshot look();
    /// Waits for a worker's next report, and takes it; what it made the server say is in `events`.
    void await_report();
    /// Takes what there is: workers' reports, and the engines whose process has ended.
    void take_reports();
    void pass_time(Millis time);
    bool stopping() const noexcept { return server_.stopping(); }

    struct Letter {
        Peer peer;
        std::unique_ptr<wire::EnvelopeT> envelope;
    };
    std::vector<Letter> events;  ///< Since they were last cleared.
    Gate gate;

private:
    std::unique_ptr<wire::EnvelopeT> open_letters(Peer const& asker);
    Sent send(Peer const& peer, std::span<std::uint8_t const> bytes) override;

    Millis now_ = 1'000'000;
    Metrics metrics_;
    std::vector<std::pair<Peer, std::vector<std::uint8_t>>> sent_;
    rpc::Server server_;  // Last: its workers use the rest.
};

}  // namespace dkv::fuzz
