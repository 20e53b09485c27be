// What systemd, or another supervisor with its protocol, is told: sd_notify(3).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "protocol/base/unique_fd.h"

namespace dkv {

/// Speaks to $NOTIFY_SOCKET. Without that variable every call does nothing. The protocol is a
/// datagram of text; libsystemd would bring its own dependencies into every wheel.
class Supervisor {
public:
    /// Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. What it cannot use is logged.
    static Supervisor from_environment();

    /// It serves, for the first time or after reloading(). `status` is one line for people.
    void ready(std::string const& status);
    /// Feeds the watchdog, where the supervisor wants that; to be called every tick. Never waits.
    void alive(std::uint64_t now_ms) noexcept;
    void reloading();
    void stopping();

private:
    bool say(std::string const& text, bool wait) const noexcept;

    UniqueFd socket_;
    std::string name_;  ///< As NOTIFY_SOCKET has it, for the log.
    std::optional<std::uint64_t> watchdog_ms_;
    std::uint64_t fed_at_ms_ = 0;
};

}  // namespace dkv
