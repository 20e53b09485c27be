#include "sidecar/transport/fd_socket.h"

#include <array>
#include <condition_variable>
#include <cstring>
#include <ctime>
#include <mutex>
#include <poll.h>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "protocol/base/fd_message.h"
#include "tests/support/results.h"
#include "tests/support/temp_dir.h"

namespace dkv {
namespace {

void connect_to(sockaddr_un const& address, UniqueFd const& connection) {
    REQUIRE(::connect(connection.get(), reinterpret_cast<sockaddr const*>(&address),
                      sizeof address) == 0);
}

struct FdListener {
    FdListener() {
        auto listening = FdSocket::listen(
            "ipc://" + (dir / "dkvd.sock"),
            [this](std::uint64_t instance, std::uint64_t ticket, UniqueFd file) -> Result<void> {
                std::lock_guard const lock(mutex);
                if (ticket == 0) return Error{ErrorCode::InvalidArgument, "ticket 0"};
                taken.push_back({instance, ticket, static_cast<bool>(file)});
                came.notify_all();
                return {};
            });
        REQUIRE(listening);
        socket = std::move(listening).value();
    }
    struct Taken {
        std::uint64_t instance;
        std::uint64_t ticket;
        bool has_file;
    };
    void await(std::size_t count) {
        std::unique_lock lock(mutex);
        REQUIRE(
            came.wait_for(lock, std::chrono::seconds(20), [&] { return taken.size() >= count; }));
    }
    UniqueFd connect() const {
        UniqueFd connection(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        connect_to(address(), connection);
        return connection;
    }
    sockaddr_un address() const {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, socket->path().c_str(), socket->path().size() + 1);
        return address;
    }

    test::TempDir dir;
    std::mutex mutex;
    std::condition_variable came;
    std::vector<Taken> taken;
    std::unique_ptr<FdSocket> socket;
};

void send(UniqueFd const& connection, std::vector<std::uint64_t> const& words, std::size_t files) {
    UniqueFd const file(::eventfd(0, EFD_CLOEXEC));
    std::vector<int> const fds(files, file.get());
    REQUIRE(send_fds(connection.get(), std::as_bytes(std::span(words)), fds) > 0);
}

bool is_ended(UniqueFd const& connection) {
    char byte = 0;
    return ::recv(connection.get(), &byte, 1, 0) <= 0;
}

/// Of the whole process.
timespec cpu_time() {
    timespec time{};
    REQUIRE(::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time) == 0);
    return time;
}
std::int64_t milliseconds(timespec const& begin, timespec const& end) {
    return (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
}

TEST_CASE("descriptors come with their instance and ticket, as many as a connection sends") {
    FdListener t;
    auto const engine = t.connect();
    auto const other = t.connect();
    send(engine, {7, 1}, 1);
    send(engine, {7, 2}, 1);
    send(other, {8, 1}, 1);
    t.await(3);
    CHECK(t.taken[0].instance + t.taken[1].instance + t.taken[2].instance == 22);
    CHECK((t.taken[0].has_file && t.taken[1].has_file && t.taken[2].has_file));
}

TEST_CASE("a message of another form ends its connection, and no other") {
    FdListener t;
    auto const good = t.connect();
    for (auto const& [words, files] : {std::pair{std::vector<std::uint64_t>{7, 1}, 0UL},
                                       {{7, 1}, 2UL},
                                       {{7}, 1UL},
                                       {{7, 1, 1}, 1UL},
                                       {{7, 0}, 1UL}}) {
        auto const bad = t.connect();
        send(bad, words, files);
        CHECK(is_ended(bad));
    }
    send(good, {7, 9}, 1);
    t.await(1);
    CHECK(t.taken.size() == 1);
}

TEST_CASE("connections are bounded; one that ends makes room") {
    FdListener t;
    std::vector<UniqueFd> all;
    for (std::size_t at = 0; at < FdSocket::kConnectionsMax; ++at) {
        all.push_back(t.connect());
        send(all.back(), {1, at + 1}, 1);
        t.await(at + 1);
    }
    CHECK(is_ended(t.connect()));
}

TEST_CASE(
    "who connects while the process has no descriptor left waits, without a spinning thread") {
    FdListener t;
    // It has logged before: a sanitizer looks at an object's type once, by a descriptor of its own.
    auto const bad = t.connect();
    send(bad, {7}, 1);
    CHECK(is_ended(bad));
    auto const address = t.address();
    UniqueFd const client(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    rlimit before{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
    UniqueFd lowest(::eventfd(0, EFD_CLOEXEC));
    rlimit const none{static_cast<rlim_t>(lowest.get()), before.rlim_max};
    lowest.reset();
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
    connect_to(address, client);
    timespec const begin = cpu_time();
    pollfd nothing{-1, 0, 0};
    ::poll(&nothing, 1, 300);  // What a thread that spins would use up.
    CHECK(milliseconds(begin, cpu_time()) < 150);
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &before) == 0);
    send(client, {7, 1}, 1);
    t.await(1);
}

TEST_CASE(
    "the socket is its owner's alone, takes the place of a stale one, and goes when it ends") {
    std::string path;
    {
        FdListener t;
        path = t.socket->path();
        struct stat info {};
        REQUIRE(::stat(path.c_str(), &info) == 0);
        CHECK((info.st_mode & 0777U) == 0600U);
        auto const again = FdSocket::listen("ipc://" + (t.dir / "dkvd.sock"),
                                            [](auto, auto, UniqueFd) { return Result<void>(); });
        CHECK(again);
    }
    CHECK(::access(path.c_str(), F_OK) != 0);
    auto const none = FdSocket::listen("tcp://127.0.0.1:1", {});
    REQUIRE(none);
    CHECK(none.value() == nullptr);
}

}  // namespace
}  // namespace dkv
