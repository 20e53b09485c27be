#include "sidecar/log_sink.h"

#include <cerrno>
#include <cstdint>
#include <fcntl.h>
#include <mutex>
#include <string>
#include <string_view>
#include <unistd.h>

#include <spdlog/sinks/base_sink.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "protocol/base/printable.h"
#include "protocol/base/unique_fd.h"

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

class LogSink final : public spdlog::sinks::base_sink<std::mutex> {
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
    std::string formatted(spdlog::details::log_msg message, std::string_view text) {
        message.payload = {text.data(), text.size()};
        spdlog::memory_buf_t line;
        formatter_->format(message, line);
        return {line.data(), line.size()};
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

    UniqueFd const stderr_ = open_stderr_again();
    std::uint64_t dropped_ = 0;
};

}  // namespace

std::shared_ptr<spdlog::sinks::sink> make_log_sink() {
    return std::make_shared<LogSink>();
}

}  // namespace dkv
