#include "cli/doctor/parse.h"

#include <algorithm>
#include <charconv>

namespace dkv::cli::doctor {
namespace {

std::string_view trimmed(std::string_view text) {
    auto const blank = " \t\n";
    auto const first = text.find_first_not_of(blank);
    if (first == text.npos) return {};
    return text.substr(first, text.find_last_not_of(blank) - first + 1);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    while (!text.empty()) {
        auto const end = std::min(text.find(separator), text.size());
        parts.push_back(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
    return parts;
}

std::optional<std::uint64_t> number(std::string_view text) {
    std::uint64_t value = 0;
    auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc()) return std::nullopt;
    return value;
}

}  // namespace

bool Cpu::has(std::string const& flag) const {
    return std::find(flags.begin(), flags.end(), flag) != flags.end();
}

Cpu parse_cpuinfo(std::string_view text) {
    Cpu cpu;
    for (auto const line : split(text, '\n')) {
        auto const colon = line.find(':');
        if (colon == line.npos) continue;
        auto const name = trimmed(line.substr(0, colon));
        auto const value = trimmed(line.substr(colon + 1));
        if (cpu.model.empty() && (name == "model name" || name == "Model")) cpu.model = value;
        if (!cpu.flags.empty() || (name != "flags" && name != "Features")) continue;
        for (auto const flag : split(value, ' '))
            if (!flag.empty()) cpu.flags.emplace_back(flag);
    }
    return cpu;
}

std::optional<double> parse_cpu_max(std::string_view text) {
    auto const parts = split(trimmed(text), ' ');
    if (parts.size() != 2) return std::nullopt;
    auto const quota = number(parts[0]);
    auto const period = number(parts[1]);
    if (!quota || !period || *period == 0) return std::nullopt;
    return static_cast<double>(*quota) / static_cast<double>(*period);
}

std::optional<std::uint64_t> parse_bytes_or_max(std::string_view text) {
    return number(trimmed(text));
}

std::uint64_t parse_meminfo(std::string_view text, std::string_view name) {
    for (auto const line : split(text, '\n')) {
        if (!line.starts_with(name) || line.size() <= name.size() || line[name.size()] != ':')
            continue;
        return number(trimmed(line.substr(name.size() + 1))).value_or(0) * 1024;
    }
    return 0;
}

std::vector<std::string> cgroup_paths(std::string_view text) {
    for (auto const line : split(text, '\n')) {
        if (!line.starts_with("0::")) continue;
        std::string path(trimmed(line.substr(3)));
        std::vector<std::string> paths;
        while (path.size() > 1) {
            paths.push_back(path);
            path.resize(path.rfind('/') == path.npos ? 0 : path.rfind('/'));
        }
        paths.emplace_back("/");
        return paths;
    }
    return {"/"};
}

bool hides_processes(std::string_view mounts) {
    for (auto const line : split(mounts, '\n')) {
        auto const parts = split(line, ' ');
        if (parts.size() < 4 || parts[1] != "/proc" || parts[2] != "proc") continue;
        for (auto const option : split(parts[3], ','))
            if (option.starts_with("hidepid=") && option != "hidepid=0" && option != "hidepid=off")
                return true;
    }
    return false;
}

}  // namespace dkv::cli::doctor
