// A sidecar that says what a test tells it to: the seam at which libdkv and the CLI are tested.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <zmq.hpp>

#include "protocol/schema/envelope.h"
#include "tests/support/temp_dir.h"

namespace dkv::test {

template <class Message>
wire::BodyUnion body(Message message) {
    wire::BodyUnion body;
    body.Set(std::move(message));
    return body;
}

wire::BodyUnion failure(wire::ErrorCode code, std::string message);

/// "ipc:///tmp/dkv-test-…/dkvd.sock", in a folder of its own that goes with the object.
class TemporaryEndpoint {
public:
    std::string const& name() const noexcept { return name_; }

private:
    TempDir folder_;
    std::string name_ = "ipc://" + (folder_ / "dkvd.sock");
};

/// A ROUTER in a thread. Answers every request kindly unless on() says otherwise; really maps the
/// regions that it is given.
class FakeSidecar {
public:
    /// What to reply; nothing: stay silent.
    using Answer = std::function<std::optional<wire::BodyUnion>(wire::EnvelopeT const&)>;

    explicit FakeSidecar(std::string const& endpoint, std::uint64_t boot_id = 1);
    ~FakeSidecar();
    FakeSidecar(FakeSidecar const&) = delete;
    FakeSidecar& operator=(FakeSidecar const&) = delete;

    /// How requests of a kind are answered from now on; an empty answer: kindly again.
    void on(wire::Body kind, Answer answer);
    /// The same, for the next `times` requests only.
    void on_next(wire::Body kind, int times, Answer answer);

    void set_boot_id(std::uint64_t boot_id);
    void set_version(std::uint16_t version);
    void set_heartbeat_ms(std::uint32_t heartbeat_ms);
    /// What OpenSession is answered with.
    void set_opened(wire::SessionOpenedT opened);
    /// Bytes instead of the next reply.
    void garble_next(std::vector<std::uint8_t> bytes);

    /// say() speaks to the peer that sent this kind of request; Hello at first.
    void follow(wire::Body kind);
    /// To the peer that is followed, unasked.
    void say(wire::BodyUnion message);

    /// Waits until `count` messages of the kind have come in all; the last of them. Gives up (and
    /// returns nothing) after ten seconds, which only a failing test does.
    std::optional<wire::EnvelopeT> wait_for(wire::Body kind, std::size_t count = 1);
    std::size_t count(wire::Body kind);

    /// A region as it is mapped here; empty when there is none.
    std::span<std::byte> region(std::uint64_t number);
    std::size_t regions();

private:
    void run(zmq::socket_t socket);
    std::optional<wire::BodyUnion> reply_to(wire::EnvelopeT const& request);
    std::optional<wire::BodyUnion> kindly(wire::EnvelopeT const& request);
    wire::BodyUnion map(wire::RegisterRegionT const& request);
    void wake() const;

    zmq::context_t context_;
    int const wake_fd_;
    std::mutex mutex_;
    std::condition_variable came_;
    std::map<wire::Body, Answer> answers_;
    std::map<wire::Body, std::pair<int, Answer>> next_answers_;
    std::deque<wire::EnvelopeT> received_;
    std::deque<wire::BodyUnion> outbox_;
    std::map<std::uint64_t, std::span<std::byte>> regions_;
    std::vector<std::uint8_t> garble_;
    std::string peer_;
    wire::Body followed_ = wire::Body::Hello;
    wire::SessionOpenedT opened_;
    std::uint64_t boot_id_;
    std::uint64_t regions_made_ = 0;
    std::uint32_t heartbeat_ms_ = 50;
    std::uint16_t version_ = kProtocolVersion;
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace dkv::test
