// A whole daemon on a real socket, in a thread, and a peer of it.
#pragma once

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <zmq.hpp>

#include "protocol/schema/envelope.h"
#include "sidecar/daemon.h"
#include "tests/support/lent_prompt.h"
#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

namespace dkv::test {

inline constexpr int kPatienceMs = 20'000;

class RunningDaemon {
public:
    RunningDaemon() {
        Config config;
        config.endpoint = endpoint = "ipc://" + (dir_ / "dkvd.sock");
        config.policy.capacity = 32;
        config.policy.window = LentPrompt::kWindow;
        config.threads = 1;
        auto started = Daemon::start(config);
        REQUIRE(started);
        daemon_ = std::move(started).value();
        thread_ = std::thread([this] { CHECK(daemon_->run()); });
    }
    ~RunningDaemon() {
        daemon_->stop();
        thread_.join();
    }
    std::string endpoint;

private:
    TempDir dir_;
    std::unique_ptr<Daemon> daemon_;
    std::thread thread_;
};

class Client {
public:
    explicit Client(std::string const& endpoint) : socket_(context_, zmq::socket_type::dealer) {
        socket_.set(zmq::sockopt::rcvtimeo, kPatienceMs);
        socket_.set(zmq::sockopt::linger, 0);
        socket_.connect(endpoint);
    }
    /// The reply; events that come before it are kept for next_event().
    template <class Message>
    std::unique_ptr<wire::EnvelopeT> ask(Message message) {
        wire::EnvelopeT envelope;
        envelope.id = ++last_id_;
        envelope.body.Set(std::move(message));
        auto const bytes = encode(envelope);
        socket_.send(zmq::buffer(bytes.data(), bytes.size()), zmq::send_flags::none);
        while (true) {
            auto received = receive();
            if (received->id == last_id_) return received;
            events_.push_back(std::move(received));
        }
    }
    std::unique_ptr<wire::EnvelopeT> next_event() {
        if (events_.empty()) return receive();
        auto event = std::move(events_.front());
        events_.erase(events_.begin());
        return event;
    }

private:
    std::unique_ptr<wire::EnvelopeT> receive() {
        zmq::message_t message;
        REQUIRE(socket_.recv(message));
        auto envelope = decode({static_cast<std::byte const*>(message.data()), message.size()});
        REQUIRE(envelope);
        return std::move(envelope).value();
    }

    zmq::context_t context_;
    zmq::socket_t socket_;
    std::uint64_t last_id_ = 0;
    std::vector<std::unique_ptr<wire::EnvelopeT>> events_;
};

}  // namespace dkv::test
