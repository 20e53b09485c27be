#include "sidecar/transport/connection_gate.h"

#include <cstring>
#include <netinet/in.h>
#include <poll.h>
#include <vector>

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "protocol/base/unique_fd.h"
#include "tests/support/temp_dir.h"

namespace dkv {
namespace {

/// A socket of 127.0.0.1 whose connections go through the gate, as libzmq's do.
class TcpListener {
public:
    TcpListener() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
        address_.sin_family = AF_INET;
        address_.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address_;
        auto* const address = reinterpret_cast<sockaddr*>(&address_);
        REQUIRE(::bind(socket_.get(), address, size) == 0);
        REQUIRE(::listen(socket_.get(), 64) == 0);
        REQUIRE(::getsockname(socket_.get(), address, &size) == 0);
    }
    UniqueFd connect() const {
        UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(::connect(client.get(), reinterpret_cast<sockaddr const*>(&address_),
                          sizeof address_) == 0);
        return client;
    }
    UniqueFd accept() const {
        pollfd polled{.fd = socket_.get(), .events = POLLIN, .revents = 0};
        REQUIRE(::poll(&polled, 1, 10'000) == 1);
        return UniqueFd(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    }

private:
    sockaddr_in address_{};
    UniqueFd socket_;
};

/// A Unix socket whose connections go through the gate, as libzmq's do.
class Listener {
public:
    Listener() : socket_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
        address_.sun_family = AF_UNIX;
        auto const path = dir_ / "s";
        std::memcpy(address_.sun_path, path.c_str(), path.size() + 1);
        REQUIRE(::bind(socket_.get(), reinterpret_cast<sockaddr const*>(&address_),
                       sizeof address_) == 0);
        REQUIRE(::listen(socket_.get(), 64) == 0);
    }
    UniqueFd connect() const {
        UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(::connect(client.get(), reinterpret_cast<sockaddr const*>(&address_),
                          sizeof address_) == 0);
        return client;
    }
    UniqueFd accept() const {
        return UniqueFd(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    }

private:
    test::TempDir dir_;
    sockaddr_un address_{};
    UniqueFd socket_;
};

/// Bounds for one test.
class Bounds {
public:
    explicit Bounds(ConnectionLimits const& limits) { bound_connections(limits); }
    ~Bounds() { bound_connections({}); }
};

bool is_closed_by_peer(UniqueFd const& client) {
    pollfd polled{.fd = client.get(), .events = POLLIN, .revents = 0};
    char byte = 0;
    return ::poll(&polled, 1, 10'000) == 1 && ::recv(client.get(), &byte, 1, 0) <= 0;
}

TEST_CASE(
    "as many connections as the limit says; one more is closed, and one that ends makes room") {
    Listener listener;
    Bounds const bounds({.connections_max = 2, .descriptors_end = 1000});
    auto const before = connections_refused();
    auto const first = listener.connect();
    auto const second = listener.connect();
    auto taken = listener.accept();
    auto const kept = listener.accept();
    REQUIRE(taken);
    REQUIRE(kept);

    auto const third = listener.connect();
    CHECK(!listener.accept());
    CHECK(errno == ECONNABORTED);
    CHECK(is_closed_by_peer(third));
    CHECK(connections_refused() == before + 1);

    taken.reset();  // As libzmq does: without telling.
    auto const fourth = listener.connect();
    CHECK(listener.accept());
}

TEST_CASE("connections over TCP share the bound, and have at most a sixteenth of it") {
    Listener local;
    TcpListener tcp;
    Bounds const bounds({.connections_max = 32, .descriptors_end = 1000});
    std::vector<UniqueFd> held;
    auto const take = [&](auto const& listener) {
        held.push_back(listener.connect());
        auto taken = listener.accept();
        bool const is_taken = static_cast<bool>(taken);
        held.push_back(std::move(taken));
        return is_taken;
    };

    CHECK(take(tcp));
    CHECK(take(tcp));
    CHECK(!take(tcp));
    CHECK(is_closed_by_peer(held[4]));
    for (int i = 0; i < 30; ++i)
        REQUIRE(take(local));
    CHECK(!take(local));

    held[1].reset();
    CHECK(take(tcp));
    CHECK(tcp_connections_max(1) == 1);
}

TEST_CASE("a connection over TCP whose bytes are not handled ends at the bound, too") {
    TcpListener listener;
    Bounds const bounds({.connections_max = 100, .descriptors_end = 1000, .bytes_in_max = 100});
    auto const client = listener.connect();
    auto const taken = listener.accept();
    std::vector<char> bytes(101);

    REQUIRE(::write(client.get(), bytes.data(), bytes.size()) == 101);

    CHECK(::recv(taken.get(), bytes.data(), bytes.size(), MSG_WAITALL) == 0);
    CHECK(is_closed_by_peer(client));
}

TEST_CASE("descriptors behind the end stay free for the process itself") {
    Listener listener;
    auto const client = listener.connect();
    auto const first_free = UniqueFd(::dup(0)).get();
    Bounds const bounds({.connections_max = 100, .descriptors_end = first_free});

    CHECK(!listener.accept());
    CHECK(errno == ECONNABORTED);
    CHECK(is_closed_by_peer(client));
}

TEST_CASE("without a descriptor left, who connects is turned away, and the socket is quiet again") {
    Listener listener;
    Bounds const bounds({.connections_max = 100, .descriptors_end = 1000});
    auto const client = listener.connect();
    rlimit old{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &old) == 0);
    rlimit few = old;
    few.rlim_cur = static_cast<rlim_t>(UniqueFd(::dup(0)).get());
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);

    bool const accepted = static_cast<bool>(listener.accept());
    int const error = errno;
    ::setrlimit(RLIMIT_NOFILE, &old);
    bool const nothing_left = !listener.accept();
    int const after = errno;

    CHECK(!accepted);
    CHECK(error == ECONNABORTED);
    CHECK(nothing_left);
    CHECK(after == EAGAIN);
    CHECK(is_closed_by_peer(client));
}

TEST_CASE("a connection whose bytes are not handled ends at the bound; handling makes room") {
    Listener listener;
    Bounds const bounds({.connections_max = 100, .descriptors_end = 1000, .bytes_in_max = 100});
    auto const client = listener.connect();
    auto const taken = listener.accept();
    std::vector<char> bytes(60);
    auto const pass = [&] {
        REQUIRE(::write(client.get(), bytes.data(), bytes.size()) == 60);
        return ::recv(taken.get(), bytes.data(), bytes.size(), 0);
    };

    CHECK(pass() == 60);
    note_handled(taken.get(), 60);
    CHECK(pass() == 60);
    CHECK(pass() == 0);
    CHECK(is_closed_by_peer(client));
}

TEST_CASE("what a peer does not read has a bound in bytes, and one message always has room") {
    Listener listener;
    Bounds const bounds({.connections_max = 100,
                         .descriptors_end = 1000,
                         .bytes_out_max = 100,
                         .bytes_out_in_all_max = 150});
    auto const first_client = listener.connect();
    auto const first = listener.accept();
    auto const second_client = listener.connect();
    auto const second = listener.accept();
    std::vector<char> bytes(200);

    CHECK(take_room(first.get(), 200));
    CHECK(!take_room(first.get(), 1));
    REQUIRE(::send(first.get(), bytes.data(), 150, 0) == 150);
    CHECK(take_room(first.get(), 50));
    CHECK(!take_room(first.get(), 1));
    CHECK(take_room(second.get(), 60));
    CHECK(!take_room(second.get(), 1));  // Of all connections.
    REQUIRE(::send(first.get(), bytes.data(), 100, 0) == 100);
    CHECK(take_room(second.get(), 1));
}

TEST_CASE("without bounds nothing is refused") {
    Listener listener;
    auto const client = listener.connect();
    auto const taken = listener.accept();

    CHECK(taken);
    CHECK(take_room(taken.get(), 1U << 30U));
}

}  // namespace
}  // namespace dkv
