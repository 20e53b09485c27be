#pragma once

#include <memory>

#include <spdlog/sinks/sink.h>

namespace dkv {

/// Lines to stderr. A reader that stalls does not stop the sidecar: lines that stderr does not take
/// at once are dropped, and their number is the next line. Text of peers comes out printable.
std::shared_ptr<spdlog::sinks::sink> make_log_sink();

}  // namespace dkv
