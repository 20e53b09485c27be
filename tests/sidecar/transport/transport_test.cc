#include "sidecar/transport/transport.h"

#include <array>
#include <fstream>
#include <optional>
#include <thread>
#include <unistd.h>

#include <doctest/doctest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <zmq.hpp>

#include "protocol/base/unique_fd.h"
#include "protocol/base/version.h"
#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

namespace dkv {
namespace {

constexpr auto kPatience = std::chrono::milliseconds(10'000);

/// Answers every message with its length and its bytes; "stop" ends it.
class Echo : public TransportHandler {
public:
    explicit Echo(Transport& transport) : transport_(transport) {}
    void on_message(PeerId const& peer,
                    std::span<std::byte const> bytes,
                    std::uint64_t /*now*/) override {
        last_peer = peer;
        std::string const text(reinterpret_cast<char const*>(bytes.data()), bytes.size());
        say(peer, std::to_string(bytes.size()) + ":" + text);
        auto const& sender = transport_.sender();
        senders_here += sender.process && sender.process->pid == ::getpid() ? 1 : 0;
        senders_unknown += sender.is_anyone() ? 1 : 0;
        if (text == "stop") transport_.stop();
    }
    void on_wake(std::uint64_t /*now*/) override {
        if (!last_peer.empty()) say(last_peer, "woken");
    }
    void on_tick(std::uint64_t /*now*/) override { ++ticks; }

    SendResult say(PeerId const& peer, std::string const& text) {
        return transport_.send(peer,
                               {reinterpret_cast<std::uint8_t const*>(text.data()), text.size()});
    }

    PeerId last_peer;
    int ticks = 0;
    int senders_here = 0;  ///< Messages of this process's own sockets.
    int senders_unknown = 0;

private:
    Transport& transport_;
};

class Dealer {
public:
    explicit Dealer(std::string const& endpoint) : socket_(context_, zmq::socket_type::dealer) {
        socket_.set(zmq::sockopt::rcvtimeo, static_cast<int>(kPatience.count()));
        socket_.set(zmq::sockopt::linger, 0);
        socket_.connect(endpoint);
    }
    void send(std::string const& text, bool more = false) {
        socket_.send(zmq::buffer(text), more ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
    std::string receive() {
        zmq::message_t message;
        REQUIRE(socket_.recv(message));
        return message.to_string();
    }
    std::string ask(std::string const& text) {
        send(text);
        return receive();
    }
    /// Until there is an answer.
    std::string ask_again(std::string const& text) {
        auto const end = std::chrono::steady_clock::now() + kPatience;
        socket_.set(zmq::sockopt::rcvtimeo, 200);
        zmq::message_t message;
        do
            send(text);
        while (!socket_.recv(message) && std::chrono::steady_clock::now() < end);
        return message.to_string();
    }

private:
    zmq::context_t context_;
    zmq::socket_t socket_;
};

/// A transport with an Echo, running in a thread.
struct Running {
    explicit Running(std::string const& endpoint, int watched_fd = -1)
        : transport(
              Transport::listen({.endpoint = endpoint, .message_bytes_max = 1000, .tick_ms = 10})
                  .value()),
          echo(*transport),
          thread([this, watched_fd] { CHECK(transport->run(echo, watched_fd)); }) {}
    ~Running() { stop(); }
    void stop() {
        if (!thread.joinable()) return;
        transport->stop();
        thread.join();
    }
    std::unique_ptr<Transport> transport;
    Echo echo;
    std::thread thread;
};

std::string refusal(std::string const& endpoint) {
    auto const transport = Transport::listen({.endpoint = endpoint, .message_bytes_max = 1000});
    REQUIRE(!transport);
    return transport.error().message;
}

unsigned mode_of(std::string const& path) {
    struct stat info {};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    return info.st_mode & 07777U;
}

TEST_CASE("messages come and go over a socket that only its owner can reach") {
    test::TempDir dir;
    auto const endpoint = "ipc://" + (dir / "sub/dkvd.sock");
    {
        Running running(endpoint);
        Dealer one(endpoint);
        Dealer two(endpoint);

        CHECK(one.ask("hi") == "2:hi");
        CHECK(two.ask("") == "0:");
        CHECK(one.ask("stop") == "4:stop");
        CHECK(mode_of(dir / "sub") == 0700);
        CHECK(mode_of(dir / "sub/dkvd.sock") == 0600);
    }
    CHECK(!std::filesystem::exists(dir / "sub/dkvd.sock"));
}

TEST_CASE("a message of several frames is answered like an empty one") {
    test::TempDir dir;
    auto const endpoint = "ipc://" + (dir / "s");
    Running running(endpoint);
    Dealer dealer(endpoint);

    dealer.send("one", true);
    dealer.send("two");

    CHECK(dealer.receive() == "0:");
}

TEST_CASE("a message beyond the limit cuts its sender off and nobody else") {
    test::TempDir dir;
    auto const endpoint = "ipc://" + (dir / "s");
    Running running(endpoint);
    Dealer good(endpoint);
    Dealer bad(endpoint);
    CHECK(bad.ask("x") == "1:x");

    bad.send(std::string(1001, 'x'));

    CHECK(good.ask(std::string(1000, 'y')) == "1000:" + std::string(1000, 'y'));
    // The sender connects again by itself. What it sent before it saw the cut is lost.
    CHECK(bad.ask_again("z") == "1:z");
}

TEST_CASE("wake and a watched descriptor reach the loop's thread") {
    test::TempDir dir;
    auto const endpoint = "ipc://" + (dir / "s");
    UniqueFd const watched(::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE));
    Running running(endpoint, watched.get());
    Dealer dealer(endpoint);
    CHECK(dealer.ask("a") == "1:a");

    running.transport->wake();
    CHECK(dealer.receive() == "woken");
    ::eventfd_write(watched.get(), 1);
    CHECK(dealer.receive() == "woken");
    eventfd_t count = 0;
    ::eventfd_read(watched.get(), &count);
}

TEST_CASE("sending to nobody says so, and sending to a peer that does not read never waits") {
    test::TempDir dir;
    auto const endpoint = "ipc://" + (dir / "s");
    auto const transport = Transport::listen(
        {.endpoint = endpoint, .message_bytes_max = 1000, .messages_queued_max = 10});
    REQUIRE(transport);
    Echo echo(*transport.value());
    CHECK(echo.say("nobody", "hello") == SendResult::Gone);

    zmq::context_t context;
    zmq::socket_t deaf(context, zmq::socket_type::dealer);
    deaf.set(zmq::sockopt::rcvhwm, 10);
    deaf.set(zmq::sockopt::linger, 0);
    deaf.connect(endpoint);
    deaf.send(zmq::str_buffer("stop"));
    REQUIRE(transport.value()->run(echo, -1));

    std::string const big(100'000, 'x');
    std::optional<SendResult> last;
    for (int i = 0; i < 10'000 && last != SendResult::Full; ++i)
        last = echo.say(echo.last_peer, big);
    CHECK(last == SendResult::Full);
}

TEST_CASE("a second sidecar at the same place is refused") {
    test::TempDir dir;
    auto const endpoint = "ipc://" + (dir / "s");
    auto const first = Transport::listen({.endpoint = endpoint, .message_bytes_max = 1000});
    REQUIRE(first);

    auto const said = [&](std::string const& whose) {
        return "a sidecar already listens at " + endpoint + ": " + whose + "; this is dkvd " +
               kVersion;
    };
    CHECK(refusal(endpoint) ==
          said(std::string("dkvd ") + kVersion + ", process " + std::to_string(::getpid())));

    // Also where somebody removed the lock: the socket itself is alive.
    std::filesystem::remove(dir / "s.lock");
    CHECK(refusal(endpoint) == said("of an unknown version"));
}

TEST_CASE("a socket that a killed sidecar left behind is replaced") {
    test::TempDir dir;
    auto const path = dir / "s";
    {
        UniqueFd const dead(::socket(AF_UNIX, SOCK_STREAM, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, path.size());
        REQUIRE(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0);
    }
    REQUIRE(std::filesystem::exists(path));

    Running running("ipc://" + path);

    Dealer dealer("ipc://" + path);
    CHECK(dealer.ask("hi") == "2:hi");
}

TEST_CASE("what is in the way is named") {
    test::TempDir dir;
    std::ofstream(dir / "file") << "x";
    CHECK(refusal("ipc://" + (dir / "file")) ==
          "'" + (dir / "file") + "' is in the way: it exists and is not a socket");
    CHECK(refusal("ipc://" + (dir / "file/s")) ==
          "directory '" + (dir / "file") + "' is not a directory");
    CHECK(refusal("ipc://" + (dir / "a/b/s")) ==
          "cannot create directory '" + (dir / "a/b") + "': No such file or directory");

    ::chmod(dir.path().c_str(), 0777);
    CHECK(refusal("ipc://" + (dir / "s")) ==
          "directory '" + dir.path() +
              "' can be written to by others; a socket needs one of mode 0700");
    ::chmod(dir.path().c_str(), 0700);
}

/// A second process that asks once, as soon as it is told where; forked while this one has no
/// threads.
class OtherProcess {
public:
    OtherProcess() {
        std::array<int, 2> lines{};
        REQUIRE(::pipe(lines.data()) == 0);
        pid_ = ::fork();
        if (pid_ == 0) {
            ::close(lines[1]);
            std::string endpoint(256, '\0');
            auto const bytes = ::read(lines[0], endpoint.data(), endpoint.size());
            endpoint.resize(bytes > 0 ? static_cast<std::size_t>(bytes) : 0);
            ::_exit(is_answered(endpoint) ? 0 : 1);
        }
        ::close(lines[0]);
        tell_ = UniqueFd(lines[1]);
    }
    /// Whether it got its answer.
    bool asks(std::string const& endpoint) {
        if (::write(tell_.get(), endpoint.data(), endpoint.size()) < 0) return false;
        tell_.reset();
        int status = -1;
        return ::waitpid(pid_, &status, 0) == pid_ && status == 0;
    }

private:
    static bool is_answered(std::string const& endpoint) noexcept {
        try {
            return Dealer(endpoint).ask("b") == "1:b";
        } catch (...) {  // doctest's: it is not to go on with the tests here.
            return false;
        }
    }

    pid_t pid_ = 0;
    UniqueFd tell_;
};

TEST_CASE("which process a message comes from is what the kernel says of its socket") {
    test::TempDir dir;
    OtherProcess other;
    OtherProcess over_tcp;
    {
        auto const endpoint = "ipc://" + (dir / "s");
        Running running(endpoint);
        Dealer dealer(endpoint);
        CHECK(dealer.ask("a") == "1:a");
        CHECK(other.asks(endpoint));
        CHECK(dealer.ask("c") == "1:c");
        running.stop();
        CHECK(running.echo.senders_here == 2);
        CHECK(running.echo.senders_unknown == 0);
        CHECK(running.transport->sender().is_anyone());
    }
    Running running("tcp://127.0.0.1:*");
    Dealer dealer(running.transport->endpoint());
    CHECK(dealer.ask("a") == "1:a");
    CHECK(over_tcp.asks(running.transport->endpoint()));
    running.stop();
    CHECK(running.echo.senders_unknown == 2);  // Nobody vouches for who is behind a TCP socket.
}

TEST_CASE("a tcp port that is taken is refused") {
    auto const first =
        Transport::listen({.endpoint = "tcp://127.0.0.1:*", .message_bytes_max = 1000});
    REQUIRE(first);
    auto const endpoint = first.value()->endpoint();

    CHECK(refusal(endpoint) == "a sidecar already listens at " + endpoint);
}

}  // namespace
}  // namespace dkv
