#pragma once

#include <memory>

#include <spdlog/sinks/sink.h>

namespace dkv {

enum class LogFormat : unsigned char {
    Text,  ///< "2026-11-29 16:33:09.123 info engine 0x…, session 0x…: words", local time.
    Json   ///< {"time": UTC, "level", "instance", "session", "message"}, the ids where there are
           ///< any.
};

/// Lines to stderr. A reader that stalls does not stop the sidecar: lines that stderr does not take
/// at once are dropped, and their number is the next line. Text of peers comes out printable.
std::shared_ptr<spdlog::sinks::sink> make_log_sink(LogFormat format);

}  // namespace dkv
