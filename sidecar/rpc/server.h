// Bytes ↔ requests: verify, decode, look up, answer. Also turns what becomes of sessions into
// events.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "protocol/schema/envelope.h"
#include "sidecar/metrics/log_limit.h"
#include "sidecar/rpc/command.h"
#include "sidecar/rpc/subscribers.h"
#include "sidecar/session/table.h"

namespace dkv::rpc {

/// Where answers and events go: a transport, or a test.
class Outbox {
public:
    enum class Sent : std::uint8_t { Yes, Full, Gone };
    virtual ~Outbox() = default;
    /// Never waits. Full: the peer does not read; Gone: there is none.
    virtual Sent send(Peer const& peer, std::span<std::uint8_t const> bytes) = 0;
};

class Server final : private Listener {
public:
    struct Options {
        Config config;  ///< Has passed check().
        std::string endpoint;
        std::uint64_t boot_id = 0;
        Millis started_at = 0;
        std::uint64_t wall_offset_ms = 0;  ///< What makes a wall clock of the steady one.
    };
    /// `wake`: any thread calls it, and on_wake() follows.
    Server(Options options,
           Metrics& metrics,
           Outbox& outbox,
           Backends backends,
           std::function<void()> wake);

    /// Sends exactly one answer to `peer`, now or, for what waits for a worker, from on_wake(), and
    /// perhaps events.
    void on_message(Peer const& peer,
                    std::span<std::byte const> bytes,
                    Millis now,
                    Sender const& sender);
    void on_wake(Millis now);
    void on_tick(Millis now);

    /// The end was asked for: true once that is answered.
    bool stopping() const noexcept { return stopping_; }
    /// From now on no engine attaches and no session opens.
    void drain() noexcept { table_.drain(); }
    /// Sessions whose cache is still being made.
    std::uint32_t sessions_in_work() const noexcept { return table_.sessions_in_work(); }
    Config const& config() const noexcept { return options_.config; }
    /// `config` has passed check(), and differs in what may change alone. What is open stays.
    void reconfigure(Config const& config);

    /// Tells subscribers that it ends.
    void say_stopping(Millis now);
    int death_fd() const noexcept { return table_.death_fd(); }
    /// For people: what works for engines.
    std::string backend() const { return table_.facts().backend; }
    /// Engines may send descriptors there; they go into descriptors().
    void offer_descriptors(std::string path) { fd_socket_ = std::move(path); }
    Descriptors& descriptors() noexcept { return table_.descriptors(); }

private:
    Reply answer(Caller const& caller, Sender const& sender, wire::EnvelopeT const& request);
    void fail(char const* name, std::uint64_t instance, Error const& error);
    void send(Peer const& peer, std::uint64_t id, wire::BodyUnion body);
    void forget_departed();

    void layer_progress(Peer const& engine,
                        std::uint64_t session,
                        LayerProgress const& progress) override;
    void planned(Peer const& engine,
                 std::uint64_t session,
                 std::vector<std::uint32_t> const& lengths) override;
    void committed(Peer const& engine,
                   std::uint64_t session,
                   JobOutcome const& outcome,
                   SpentTime spent) override;
    void session_failed(Peer const& engine, std::uint64_t session, Error const& error) override;
    void region_registered(Asker const& asker, Result<std::uint64_t> const& region) override;
    void done(Asker const& asker, Result<void> const& result) override;
    void answer_later(Asker const& asker, Reply reply);
    void notice(Notice const& notice) override;

    Options options_;
    std::string fd_socket_;
    Metrics& metrics_;
    Outbox& outbox_;
    Subscribers subscribers_;
    LogLimit log_;
    bool stopping_ = false;
    Millis now_ = 0;  ///< Of the call under way.
    Table table_;     // Last: it talks to this while it lives.
};

}  // namespace dkv::rpc
