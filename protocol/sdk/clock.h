// Time and chance, as the SDK uses them.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace dkv::sdk {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;
using std::chrono::milliseconds;

/// From the system's own source of randomness; never 0, which means "none" on the wire.
std::uint64_t random_id();

/// "9f3c…", 16 digits: how ids are shown to people.
std::string hex(std::uint64_t id);

}  // namespace dkv::sdk
