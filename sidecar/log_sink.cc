#include "sidecar/log_sink.h"

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <fcntl.h>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unistd.h>

#include <fmt/chrono.h>
#include <spdlog/sinks/base_sink.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "protocol/base/printable.h"
#include "protocol/base/unique_fd.h"
#include "sidecar/metrics/log_scope.h"

namespace dkv {
namespace {

/// With the time and the count of what was dropped below PIPE_BUF: a pipe takes a line whole.
constexpr std::size_t kTextBytesMax = 3500;

/// Another open file for a pipe or a terminal, so that only this process does not wait: others have
/// stderr, too. None where it is not this user's; a socket has a way of its own, and a file on a
/// disk is not waited for: there, another open file would write over what this one has written.
UniqueFd open_stderr_again() {
    struct stat info {};
    if (::fstat(STDERR_FILENO, &info) != 0 || !(S_ISFIFO(info.st_mode) || S_ISCHR(info.st_mode)))
        return {};
    return UniqueFd(::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

std::string_view level_of(spdlog::details::log_msg const& message) {
    auto const name = spdlog::level::to_string_view(message.level);
    return {name.data(), name.size()};
}

std::string as_text(spdlog::details::log_msg const& message,
                    std::string_view text,
                    LogScope::Ids ids) {
    auto const when = std::chrono::floor<std::chrono::milliseconds>(message.time);
    auto const parts = fmt::localtime(message.time);
    std::string whose;
    if (ids.instance != 0) whose = fmt::format("engine 0x{:016x}", ids.instance);
    if (ids.session != 0) whose += fmt::format(", session 0x{:016x}", ids.session);
    return fmt::format("{:%Y-%m-%d %H:%M:%S}.{:03} {} {}{}{}\n", parts,
                       when.time_since_epoch().count() % 1000, level_of(message), whose,
                       whose.empty() ? "" : ": ", text);
}

std::string as_json(spdlog::details::log_msg const& message,
                    std::string_view text,
                    LogScope::Ids ids) {
    auto const when = std::chrono::floor<std::chrono::milliseconds>(message.time);
    auto const parts = fmt::gmtime(message.time);
    nlohmann::ordered_json line{{"time", fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", parts,
                                                     when.time_since_epoch().count() % 1000)},
                                {"level", level_of(message)}};
    if (ids.instance != 0) line["instance"] = fmt::format("0x{:016x}", ids.instance);
    if (ids.session != 0) line["session"] = fmt::format("0x{:016x}", ids.session);
    line["message"] = text;
    return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

class LogSink final : public spdlog::sinks::base_sink<std::mutex> {
public:
    explicit LogSink(LogFormat format) : format_(format) {}

protected:
    void sink_it_(spdlog::details::log_msg const& message) override {
        auto const text =
            printable({message.payload.data(), message.payload.size()}, kTextBytesMax);
        std::string lines;
        if (dropped_ > 0)
            lines = formatted(
                message, std::to_string(dropped_) + " lines were dropped: stderr was not read");
        lines += formatted(message, text);
        if (write(lines))
            dropped_ = 0;
        else
            ++dropped_;
    }
    void flush_() override {}

private:
    std::string formatted(spdlog::details::log_msg const& message, std::string_view text) const {
        auto const ids = LogScope::current();
        return format_ == LogFormat::Json ? as_json(message, text, ids)
                                          : as_text(message, text, ids);
    }

    bool write(std::string_view lines) const noexcept {
        ssize_t written = -1;
        do {
            if (stderr_)
                written = ::write(stderr_.get(), lines.data(), lines.size());
            else
                written =
                    ::send(STDERR_FILENO, lines.data(), lines.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            if (written < 0 && errno == ENOTSOCK)
                written = ::write(STDERR_FILENO, lines.data(), lines.size());
        } while (written < 0 && errno == EINTR);
        return written >= 0;
    }

    LogFormat const format_;
    UniqueFd const stderr_ = open_stderr_again();
    std::uint64_t dropped_ = 0;
};

}  // namespace

std::shared_ptr<spdlog::sinks::sink> make_log_sink(LogFormat format) {
    return std::make_shared<LogSink>(format);
}

}  // namespace dkv
