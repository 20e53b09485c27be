#include "tests/fuzz/world.h"

#include <doctest/doctest.h>

#include "protocol/schema/envelope.h"
#include "tests/fuzz/messages.h"

namespace dkv::fuzz {
namespace {

/// Small, so that what is wrong meets them, and so that what is remembered is soon told.
Config small_config() {
    Config config;
    config.policy.name = "snapkv";
    config.policy.capacity = 24;
    config.policy.window = 8;
    config.threads = 1;
    config.limits.instances_max = 12;
    config.limits.sessions_max = 24;
    config.limits.regions_max = 24;
    config.limits.sessions_remembered_max = 2;
    config.limits.gone_remembered_max = 1;
    config.limits.subscribers_max = 1;
    config.limits.tokens_max = 4096;
    config.limits.heads_total_max = 4096;
    return config;
}

bool is_event(wire::Body type) {
    switch (type) {
        case wire::Body::NONE:
        case wire::Body::LayerProgress:
        case wire::Body::Planned:
        case wire::Body::Committed:
        case wire::Body::SessionFailed:
        case wire::Body::Notice: return true;
        default: return false;
    }
}

}  // namespace

World::World()
    : server_({.config = small_config(),
               .endpoint = "ipc:///fuzzed",
               .boot_id = kBoot,
               .started_at = 1000,
               .wall_offset_ms = 5000},
              metrics_,
              *this,
              Backends([] { return make_cpu_backend(1); }),
              [this] { gate.ring(); }) {}

World::~World() {
    gate.open();
}

rpc::Outbox::Sent World::send(Peer const& peer, std::span<std::uint8_t const> bytes) {
    sent_.emplace_back(peer, std::vector<std::uint8_t>(bytes.begin(), bytes.end()));
    return Sent::Yes;
}

std::unique_ptr<wire::EnvelopeT> World::ask(Sender const& from,
                                            std::vector<std::uint8_t> const& bytes,
                                            std::uint64_t id) {
    sent_.clear();
    events.clear();
    ++now_;
    server_.on_message(from.peer, std::as_bytes(std::span(bytes)), now_,
                       dkv::Sender{.process = from.process});

    auto answer = open_letters(from.peer);
    if (answer == nullptr || answer->id != id) FAIL("no answer to request ", id);
    return answer;
}

/// Events into `events`; the one answer, where somebody asked.
std::unique_ptr<wire::EnvelopeT> World::open_letters(Peer const& asker) {
    std::unique_ptr<wire::EnvelopeT> answer;
    for (auto const& [peer, letter] : std::exchange(sent_, {})) {
        auto envelope = decode(std::as_bytes(std::span(letter)));
        if (!envelope || envelope.value()->boot_id != kBoot) FAIL("no answer of this sidecar");
        if (is_event(envelope.value()->body.type)) {
            if (envelope.value()->id != 0) FAIL("an event with the id of a request");
            events.push_back({peer, std::move(envelope).value()});
            continue;
        }
        if (peer != asker || answer != nullptr) FAIL("an answer to ", peer, " who did not ask");
        answer = std::move(envelope).value();
    }
    return answer;
}

Snapshot World::look() {
    static auto const request = encoded(1, body_of(wire::GetSavingsT()));
    server_.on_message("oracle", std::as_bytes(std::span(request)), now_,
                       dkv::Sender{.process = test::own_process()});
    REQUIRE(sent_.size() == 1);
    auto const letter = std::exchange(sent_, {}).front().second;
    auto const* const info = wire::GetEnvelope(letter.data())->body_as_SavingsInfo();
    REQUIRE(info != nullptr);
    return snapshot_of(*info);
}

void World::await_report() {
    gate.wait();
    take_reports();
}

void World::take_reports() {
    sent_.clear();
    events.clear();
    server_.on_wake(now_);
    static_cast<void>(open_letters({}));
}

void World::pass_time(Millis time) {
    now_ += time;
    sent_.clear();
    server_.on_tick(now_);
    static_cast<void>(open_letters({}));
}

}  // namespace dkv::fuzz
