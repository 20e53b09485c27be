#include "sidecar/supervisor.h"

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>
#include <unistd.h>

#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <system_error>

namespace dkv {
namespace {

std::optional<std::uint64_t> number_in(char const* name) {
    char const* const text = std::getenv(name);
    if (text == nullptr) return {};
    std::string_view const digits(text);
    std::uint64_t number = 0;
    auto const [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (error == std::errc{} && end == digits.data() + digits.size() && number > 0) return number;
    spdlog::warn("{}='{}' is not a number above 0: it is ignored", name, text);
    return {};
}

/// A datagram socket that is connected there. errno says why there is none.
UniqueFd connected_to(std::string_view name) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    errno = EINVAL;
    if (name.size() < 2 || (name.front() != '/' && name.front() != '@')) return {};
    if (name.size() >= sizeof(address.sun_path)) return {};
    std::memcpy(address.sun_path, name.data(), name.size());
    auto length = offsetof(sockaddr_un, sun_path) + name.size();
    if (name.front() == '@')
        address.sun_path[0] = '\0';  // The abstract namespace: no byte ends the name.
    else
        ++length;
    UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (socket && ::connect(socket.get(), reinterpret_cast<sockaddr const*>(&address),
                            static_cast<socklen_t>(length)) != 0) {
        int const why = errno;
        socket.reset();
        errno = why;
    }
    return socket;
}

}  // namespace

Supervisor Supervisor::from_environment() {
    Supervisor supervisor;
    char const* const name = std::getenv("NOTIFY_SOCKET");
    if (name == nullptr || *name == '\0') return supervisor;
    supervisor.name_ = name;
    supervisor.socket_ = connected_to(name);
    if (!supervisor.socket_) {
        spdlog::warn("NOTIFY_SOCKET='{}' cannot be reached, the supervisor is told nothing: {}",
                     name, std::generic_category().message(errno));
        return supervisor;
    }
    auto const meant_for = number_in("WATCHDOG_PID");
    auto const every_us = number_in("WATCHDOG_USEC");
    bool const is_meant = !meant_for || *meant_for == static_cast<std::uint64_t>(::getpid());
    if (every_us && is_meant) supervisor.watchdog_ms_ = *every_us / 1000;
    return supervisor;
}

void Supervisor::ready(std::string const& status) {
    // A supervisor that misses this line takes the sidecar for one that does not start.
    if (socket_ && !say("READY=1\nSTATUS=" + status, true))
        spdlog::warn("the supervisor at {} does not hear that this sidecar is ready: {}", name_,
                     std::generic_category().message(errno));
}

void Supervisor::alive(std::uint64_t now_ms) noexcept {
    // A quarter of the time: one lost message and one late tick do no harm.
    if (!watchdog_ms_ || now_ms - fed_at_ms_ < *watchdog_ms_ / 4) return;
    if (say("WATCHDOG=1", false)) fed_at_ms_ = now_ms;
}

void Supervisor::reloading() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    auto const usec = std::uint64_t(now.tv_sec) * 1'000'000 + std::uint64_t(now.tv_nsec) / 1000;
    say("RELOADING=1\nMONOTONIC_USEC=" + std::to_string(usec), false);
}

void Supervisor::stopping() {
    say("STOPPING=1", false);
}

bool Supervisor::say(std::string const& text, bool wait) const noexcept {
    if (!socket_) return false;
    int const flags = MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT);
    ssize_t sent = -1;
    do {
        sent = ::send(socket_.get(), text.data(), text.size(), flags);
    } while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

}  // namespace dkv
