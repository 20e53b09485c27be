// The kernel's text files, as values. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/doctor/readings.h"

namespace dkv::cli::doctor {

/// /proc/cpuinfo, its first processor; x86 ("flags") and ARM ("Features").
Cpu parse_cpuinfo(std::string_view text);
/// cgroup v2 cpu.max: "200000 100000" → 2.0; "max 100000" → nothing.
std::optional<double> parse_cpu_max(std::string_view text);
/// memory.max and its like: a number, or "max" → nothing.
std::optional<std::uint64_t> parse_bytes_or_max(std::string_view text);
/// /proc/meminfo: the bytes of one line, 0 when it is not there.
std::uint64_t parse_meminfo(std::string_view text, std::string_view name);
/// /proc/self/cgroup: the unified group's path and every one above it, "/" last.
std::vector<std::string> cgroup_paths(std::string_view text);
/// /proc/self/mounts: whether /proc hides other users' processes.
bool hides_processes(std::string_view mounts);

}  // namespace dkv::cli::doctor
