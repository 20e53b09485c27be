#include "protocol/base/fd_message.h"

#include <array>
#include <cerrno>
#include <fcntl.h>

#include <doctest/doctest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

using namespace dkv;

namespace {

struct Line {
    Line() {
        std::array<int, 2> ends{};
        REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) == 0);
        here = UniqueFd(ends[0]);
        there = UniqueFd(ends[1]);
    }
    FdMessage receive(int flags = 0) { return receive_fds(there.get(), bytes, flags); }

    UniqueFd here;
    UniqueFd there;
    std::array<std::byte, 4> bytes{};
};

}  // namespace

TEST_CASE("descriptors arrive beside their bytes, as others of the same files") {
    Line line;
    UniqueFd const file(::eventfd(7, EFD_CLOEXEC));
    std::array const text{std::byte{1}, std::byte{2}, std::byte{3}};
    std::array<int, kFdsMax> fds{};
    for (std::size_t count = 0; count <= kFdsMax; ++count) {
        fds.fill(file.get());
        REQUIRE(send_fds(line.here.get(), text, std::span(fds).first(count)) == 3);
        auto const message = line.receive();
        CHECK(message.size == 3);
        CHECK(line.bytes[2] == std::byte{3});
        CHECK_FALSE(message.cut);
        REQUIRE(message.fds.size() == count);
        for (auto const& fd : message.fds) {
            CHECK(fd.get() != file.get());
            CHECK((::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
        }
        if (count != 1) continue;
        eventfd_t value = 0;
        CHECK(::eventfd_read(message.fds.front().get(), &value) == 0);
        CHECK(value == 7);
    }
}

TEST_CASE("a message that is longer than its room, or an end, is seen") {
    Line line;
    std::array<std::byte, 5> const text{};
    REQUIRE(send_fds(line.here.get(), text, {}) == 5);
    CHECK(line.receive().cut);
    CHECK(line.receive(MSG_DONTWAIT).size == -1);
    CHECK(errno == EAGAIN);
    line.here.reset();
    CHECK(line.receive().size == 0);
    std::array<std::byte, 1> const byte{};
    CHECK(send_fds(line.there.get(), byte, {}) == -1);
    CHECK(errno == EPIPE);
}
