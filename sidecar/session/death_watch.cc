#include "sidecar/session/death_watch.h"

#include <algorithm>
#include <array>

#include <sys/epoll.h>
#include <sys/syscall.h>

namespace dkv {

DeathWatch::DeathWatch() : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {}

UniqueFd DeathWatch::watch(std::uint32_t pid, std::uint64_t instance) {
    if (pid == 0 || !epoll_) return {};
    UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0)));
    if (!process) return {};
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = instance;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, process.get(), &event) != 0) return {};
    return process;
}

std::vector<std::uint64_t> DeathWatch::dead() {
    std::array<epoll_event, 64> events{};
    int const count =
        epoll_ ? ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0) : 0;
    std::vector<std::uint64_t> instances(static_cast<std::size_t>(std::max(count, 0)));
    for (std::size_t i = 0; i < instances.size(); ++i)
        instances[i] = events[i].data.u64;
    return instances;
}

}  // namespace dkv
