// Controllers over TCP: real sockets, real keys.
#include <array>
#include <filesystem>
#include <fstream>
#include <thread>

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <zmq.hpp>

#include "protocol/keys/key_files.h"
#include "sidecar/transport/connection_gate.h"
#include "sidecar/transport/transport.h"
#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

namespace dkv {
namespace {

constexpr int kPatienceMs = 10'000;
constexpr int kHandshakeEvents =
    ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
    ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;

keys::KeyPair new_pair() {
    auto pair = keys::make_pair();
    REQUIRE(pair);
    return pair.value();
}

/// Answers with the name of the sender's key and the message.
class Names : public TransportHandler {
public:
    explicit Names(Transport& transport) : transport_(transport) {}
    void on_message(PeerId const& peer,
                    std::span<std::byte const> bytes,
                    std::uint64_t /*now*/) override {
        auto const& sender = transport_.sender();
        auto const text = (sender.process ? "a process" : sender.key) + ":" +
                          std::string(reinterpret_cast<char const*>(bytes.data()), bytes.size());
        CHECK(transport_.send(peer, {reinterpret_cast<std::uint8_t const*>(text.data()),
                                     text.size()}) == SendResult::Sent);
    }
    void on_wake(std::uint64_t /*now*/) override {}
    void on_tick(std::uint64_t /*now*/) override {}

private:
    Transport& transport_;
};

/// A transport with a control socket, whose folder of clients has alice's key.
struct Controlled {
    Controlled() {
        REQUIRE(keys::write_pair(dir.path(), sidecar));
        REQUIRE(::mkdir((dir / "clients").c_str(), 0700) == 0);
        let_in("alice", alice);
    }
    ~Controlled() { stop(); }
    void let_in(std::string const& name, keys::KeyPair const& pair) const {
        std::ofstream(dir / ("clients/" + name + ".key"))
            << "public-key = \"" << pair.public_key << "\"\n";
    }
    Transport::Options options() const {
        return {.endpoint = "ipc://" + (dir / "s"),
                .message_bytes_max = 1000,
                .tick_ms = 10,
                .control = {.endpoint = "tcp://127.0.0.1:*",
                            .secret_key_file = dir / "dkv.key_secret"}};
    }
    void start() {
        transport = Transport::listen(options()).value();
        names.emplace(*transport);
        thread = std::thread([this] { CHECK(transport->run(*names, -1)); });
    }
    void stop() {
        if (!thread.joinable()) return;
        transport->stop();
        thread.join();
    }
    std::string refusal() const {
        auto const listening = Transport::listen(options());
        REQUIRE(!listening);
        return listening.error().message;
    }

    test::TempDir dir;
    keys::KeyPair const sidecar = new_pair();
    keys::KeyPair const alice = new_pair();
    std::unique_ptr<Transport> transport;
    std::optional<Names> names;
    std::thread thread;
};

class Client {
public:
    explicit Client(std::string const& endpoint,
                    keys::KeyPair const* own = nullptr,
                    std::string const& sidecar = {}) {
        socket_.set(zmq::sockopt::rcvtimeo, kPatienceMs);
        socket_.set(zmq::sockopt::linger, 0);
        if (own != nullptr) {
            socket_.set(zmq::sockopt::curve_serverkey, sidecar);
            socket_.set(zmq::sockopt::curve_publickey, own->public_key);
            socket_.set(zmq::sockopt::curve_secretkey, own->secret_key);
        }
        monitor_.set(zmq::sockopt::rcvtimeo, kPatienceMs);
        REQUIRE(zmq_socket_monitor(socket_.handle(), "inproc://monitor", kHandshakeEvents) == 0);
        monitor_.connect("inproc://monitor");
        socket_.connect(endpoint);
    }
    ~Client() { zmq_socket_monitor(socket_.handle(), nullptr, 0); }
    /// What became of the handshake: one of kHandshakeEvents.
    int handshake() {
        zmq::message_t event;
        REQUIRE(monitor_.recv(event));
        std::uint16_t number = 0;
        std::memcpy(&number, event.data(), sizeof number);
        zmq::message_t address;
        REQUIRE(monitor_.recv(address));
        return number;
    }
    std::string ask(std::string const& text) {
        socket_.send(zmq::buffer(text), zmq::send_flags::none);
        zmq::message_t message;
        REQUIRE(socket_.recv(message));
        return message.to_string();
    }

private:
    zmq::context_t context_;
    zmq::socket_t monitor_{context_, zmq::socket_type::pair};
    zmq::socket_t socket_{context_, zmq::socket_type::dealer};
};

TEST_CASE("a key in the folder is let in by its name, beside the socket of this machine") {
    Controlled c;
    c.start();
    Client alice(c.transport->control_endpoint(), &c.alice, c.sidecar.public_key);
    Client local(c.transport->endpoint());

    CHECK(alice.ask("one") == "alice:one");
    CHECK(local.ask("two") == "a process:two");
    CHECK(alice.ask("three") == "alice:three");
}

TEST_CASE("without the right keys nothing is let in") {
    Controlled c;
    c.start();
    auto const stranger = new_pair();
    auto const where = c.transport->control_endpoint();

    CHECK(Client(where, &stranger, c.sidecar.public_key).handshake() ==
          ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
    CHECK(Client(where, &c.alice, stranger.public_key).handshake() !=
          ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    CHECK(Client(where).handshake() != ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    // Her public key alone, which is not secret, proves nothing.
    keys::KeyPair const forged{c.alice.public_key, stranger.secret_key};
    CHECK(Client(where, &forged, c.sidecar.public_key).handshake() !=
          ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
    CHECK(Client(where, &c.alice, c.sidecar.public_key).ask("hi") == "alice:hi");
}

TEST_CASE("a key that is added is let in at once, and one that is removed no more") {
    Controlled c;
    c.start();
    auto const where = c.transport->control_endpoint();
    auto const bob = new_pair();
    CHECK(Client(where, &bob, c.sidecar.public_key).handshake() == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);

    c.let_in("bob", bob);
    CHECK(Client(where, &bob, c.sidecar.public_key).ask("hi") == "bob:hi");

    std::filesystem::remove(c.dir / "clients/bob.key");
    CHECK(Client(where, &bob, c.sidecar.public_key).handshake() == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
    // Not even while the folder is open to others, who could have put a key there.
    ::chmod((c.dir / "clients").c_str(), 0777);
    CHECK(Client(where, &c.alice, c.sidecar.public_key).handshake() ==
          ZMQ_EVENT_HANDSHAKE_FAILED_AUTH);
    ::chmod((c.dir / "clients").c_str(), 0700);
    CHECK(Client(where, &c.alice, c.sidecar.public_key).ask("hi") == "alice:hi");
}

TEST_CASE("encrypted messages that were handled leave room for more") {
    Controlled c;
    c.start();
    bound_connections({.connections_max = 100,
                       .descriptors_end = 1000,
                       .bytes_in_max = 4000,
                       .bytes_out_max = 4000,
                       .bytes_out_in_all_max = 4000});
    {
        Client alice(c.transport->control_endpoint(), &c.alice, c.sidecar.public_key);
        for (auto const size : {0U, 200U, 222U, 223U, 254U, 900U})
            for (int i = 0; i < 100; ++i)
                REQUIRE(alice.ask(std::string(size, 'x')).size() == size + 6);
    }
    bound_connections({});
}

TEST_CASE("control without keys does not start, and says what is missing") {
    Controlled c;
    auto const folder = c.dir / "clients";
    auto const to_do = ": copy the dkv.key of each controller there, as NAME.key (dkv keys)";
    ::chmod((folder + "/alice.key").c_str(), 0666);
    CHECK(c.refusal() == "key file '" + folder +
                             "/alice.key' has mode 0666: others can write to it; chmod 644 closes "
                             "it to them");
    std::filesystem::remove(folder + "/alice.key");
    CHECK(c.refusal() == "no controller is let in, no key is in '" + folder + "'" + to_do);
    std::filesystem::remove(folder);
    CHECK(c.refusal() == "no controller is let in: there is no folder '" + folder + "'" + to_do);
    auto const secret = c.dir / "dkv.key_secret";
    ::chmod(secret.c_str(), 0640);
    CHECK(c.refusal() == "key file '" + secret +
                             "' has mode 0640: others can use it; chmod 600 makes it yours alone");
    std::filesystem::remove(secret);
    CHECK(c.refusal() == "tcp://127.0.0.1:* needs a secret key, and '" + secret +
                             "' is not there: dkv keys makes it");
    CHECK(!std::filesystem::exists(c.dir / "s"));
}

}  // namespace
}  // namespace dkv
