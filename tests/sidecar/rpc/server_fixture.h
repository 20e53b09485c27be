// A server without a socket: what is sent is kept, and late answers are waited for.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "sidecar/rpc/server.h"
#include "tests/support/lent_prompt.h"
#include "tests/support/results.h"
#include "tests/support/wakes.h"

namespace dkv::rpc {

using wire::Body;

inline constexpr std::uint64_t kBoot = 77;
inline constexpr std::uint64_t kEngine = 11;

/// Keeps what is sent; may claim that a peer is full or gone.
class FakeOutbox : public Outbox {
public:
    struct Letter {
        Peer peer;
        std::unique_ptr<wire::EnvelopeT> envelope;
    };
    Sent send(Peer const& peer, std::span<std::uint8_t const> bytes) override {
        if (peer == full) return Sent::Full;
        if (peer == gone) return Sent::Gone;
        auto envelope = decode(std::as_bytes(bytes));
        REQUIRE(envelope);
        letters.push_back({peer, std::move(envelope).value()});
        return Sent::Yes;
    }
    std::vector<Letter> letters;
    Peer full;
    Peer gone;
};

struct ServerFixture {
    explicit ServerFixture(Config settings = {})
        : ServerFixture(settings, Backends([] { return make_cpu_backend(1); })) {}
    ServerFixture(Config settings, Backends backends)
        : server({.config = std::move(settings),
                  .endpoint = "test",
                  .boot_id = kBoot,
                  .started_at = 1000,
                  .wall_offset_ms = 5000},
                 metrics,
                 outbox,
                 std::move(backends),
                 [this] { wakes.ring(); }) {}

    /// The one answer to these bytes.
    wire::EnvelopeT& answer(std::span<std::uint8_t const> bytes, Peer const& peer = "peer") {
        outbox.letters.clear();
        server.on_message(peer, std::as_bytes(bytes), now, sender);
        return only_answer(peer);
    }
    template <class Message>
    wire::BodyUnion& ask(Message message, Peer const& peer = "peer") {
        auto& reply = answer(encoded(std::move(message), 9), peer);
        CHECK(reply.id == 9);
        CHECK(reply.boot_id == kBoot);
        return reply.body;
    }
    template <class Message>
    void deliver(Message message, std::uint64_t id, Peer const& peer) {
        auto const bytes = encoded(std::move(message), id);
        server.on_message(peer, std::as_bytes(std::span(bytes)), now, sender);
    }
    /// Asks what is answered later: nothing is, yet.
    template <class Message>
    void ask_later(Message message, std::uint64_t id = 9, Peer const& peer = "peer") {
        outbox.letters.clear();
        deliver(std::move(message), id, peer);
        REQUIRE(outbox.letters.empty());
    }
    /// A worker has a result that the server has not read yet.
    void await_wake() { wakes.wait(); }
    /// The one answer that comes late.
    wire::EnvelopeT& late_answer(Peer const& peer = "peer") {
        while (outbox.letters.empty()) {
            await_wake();
            server.on_wake(now);
        }
        return only_answer(peer);
    }
    template <class Message>
    wire::FailureT ask_in_vain(Message message) {
        auto& body = ask(std::move(message));
        REQUIRE(body.type == Body::Failure);
        return *body.AsFailure();
    }
    void attach() { REQUIRE(ask(hello()).type == Body::Welcome); }

    static wire::HelloT hello() {
        wire::HelloT hello;
        hello.instance = kEngine;
        hello.generation = 1;
        hello.engine = "test 1.0";
        hello.model = "tiny";
        hello.geometry = std::make_unique<wire::GeometryT>();
        hello.geometry->layers = 3;
        hello.geometry->q_heads = 4;
        hello.geometry->kv_heads = 2;
        hello.geometry->head_dim = 8;
        hello.geometry->dtype = wire::Dtype::F32;
        return hello;
    }
    static wire::OpenSessionT open_session(std::uint64_t session, char const* policy = nullptr) {
        wire::OpenSessionT open;
        open.instance = kEngine;
        open.session = session;
        open.prompt_tokens = 1000;
        if (policy == nullptr) return open;
        open.policy = std::make_unique<wire::PolicyT>();
        open.policy->name = policy;
        return open;
    }
    static wire::LayerReadyT layer_ready() {
        wire::LayerReadyT ready;
        ready.instance = kEngine;
        ready.session = 1;
        for (auto* const rows : {&ready.keys, &ready.values}) {
            *rows = std::make_unique<wire::RowsT>();
            (*rows)->dtype = wire::Dtype::F32;
        }
        return ready;
    }
    static wire::SetPolicyT set_policy(std::uint64_t instance, char const* name) {
        wire::SetPolicyT set;
        set.instance = instance;
        if (name == nullptr) return set;
        set.policy = std::make_unique<wire::PolicyT>();
        set.policy->name = name;
        return set;
    }

    template <class Message>
    static std::vector<std::uint8_t> encoded(Message message, std::uint64_t id) {
        wire::EnvelopeT envelope;
        envelope.id = id;
        envelope.body.Set(std::move(message));
        return encode(envelope);
    }
    wire::EnvelopeT& only_answer(Peer const& peer) {
        auto const is_answer = [&](auto const& letter) {
            auto const type = letter.envelope->body.type;
            return letter.peer == peer && type != Body::Notice && type != Body::NONE;
        };
        REQUIRE(std::count_if(outbox.letters.begin(), outbox.letters.end(), is_answer) == 1);
        return *std::find_if(outbox.letters.begin(), outbox.letters.end(), is_answer)->envelope;
    }

    Millis now = 3000;
    Sender sender = {.process = test::own_process()};  ///< Behind every peer.
    Metrics metrics;
    FakeOutbox outbox;
    test::Wakes wakes;
    Server server;
};

template <class Message>
Message of_engine() {
    Message message;
    message.instance = kEngine;
    return message;
}

}  // namespace dkv::rpc
