#include "cli/saved/shard.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <system_error>

#include "protocol/container/crc32.h"
#include "protocol/container/mapped_file.h"

namespace dkv::cli {
namespace {

constexpr std::size_t kEndBytes = 4096;

/// The variables of one kind of array job; nullptr: it has none for that.
struct ArrayJob {
    char const* index;
    char const* count;
    char const* first;
    char const* step;
};

constexpr ArrayJob kArrayJobs[] = {
    {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN",
     "SLURM_ARRAY_TASK_STEP"},
    {"JOB_COMPLETION_INDEX", nullptr, nullptr, nullptr},
    {"TASK_ID", "TASK_COUNT", nullptr, nullptr},
};

Error bad_shard(std::string const& text, std::string const& why) {
    return {ErrorCode::InvalidArgument, fmt::format("--shard {}: {}", text, why)};
}

std::optional<std::uint32_t> count_in(std::string_view text) {
    std::uint32_t value = 0;
    auto const* const end = text.data() + text.size();
    auto const read = std::from_chars(text.data(), end, value);
    if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
    return value;
}

/// Nothing where the variable is not set.
Result<std::optional<std::uint32_t>> count_of(std::string const& text, char const* variable) {
    char const* const value = variable == nullptr ? nullptr : std::getenv(variable);
    if (value == nullptr || *value == '\0') return std::optional<std::uint32_t>();
    auto const count = count_in(value);
    if (!count) return bad_shard(text, fmt::format("{} is '{}', not a count", variable, value));
    return count;
}

/// The index as the job says it, of `count`: arrays from 0, so that one task can be run again
/// alone.
Result<Shard> told_count(std::string const& text,
                         ArrayJob const& job,
                         std::uint32_t index,
                         std::uint32_t count) {
    if (index >= count)
        return bad_shard(text, fmt::format("{} is {}: an array of {} runs from 0 to {}", job.index,
                                           index, count, count - 1));
    return Shard{index, count};
}

Result<Shard> of_environment(std::string const& text, std::optional<std::uint32_t> count) {
    for (auto const& job : kArrayJobs) {
        auto const index = DKV_TRY(count_of(text, job.index));
        if (!index) continue;
        if (count) return told_count(text, job, *index, *count);
        auto const all = DKV_TRY(count_of(text, job.count));
        if (!all || *all == 0)
            return bad_shard(text, fmt::format("{} is {}, but nothing says how many there are: "
                                               "give --shard auto/N",
                                               job.index, *index));
        auto const first = DKV_TRY(count_of(text, job.first)).value_or(0);
        auto const step = std::max(1U, DKV_TRY(count_of(text, job.step)).value_or(1));
        if (*index < first || (*index - first) % step != 0 || (*index - first) / step >= *all)
            return bad_shard(text, fmt::format("{} is {}, not one of {} from {} in steps of {}: "
                                               "give --shard I/N",
                                               job.index, *index, *all, first, step));
        return Shard{(*index - first) / step, *all};
    }
    return bad_shard(text,
                     "SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX and TASK_ID are not set: give "
                     "--shard I/N");
}

/// The files of a folder in the order of their names, or the file itself.
std::vector<std::filesystem::path> parts_of(std::filesystem::path const& path) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) return {path};
    std::vector<std::filesystem::path> parts;
    for (std::filesystem::recursive_directory_iterator at(path, error);
         !error && at != std::filesystem::recursive_directory_iterator(); at.increment(error))
        if (at->is_regular_file(error)) parts.push_back(at->path());
    std::ranges::sort(parts);
    return parts;
}

/// Nothing when it cannot be read.
std::optional<std::uint32_t> content_key(std::filesystem::path const& path) {
    std::uint32_t key = 0;
    for (auto const& part : parts_of(path)) {
        auto const file = MappedFile::open(part);
        if (!file) return std::nullopt;
        auto const bytes = file.value().bytes();
        auto const end = std::min(bytes.size(), kEndBytes);
        auto const size = fmt::format("{}.", bytes.size());
        key = crc32(key, std::as_bytes(std::span(size)));
        key = crc32(key, bytes.first(end));
        key = crc32(key, bytes.last(end));
    }
    return key;
}

}  // namespace

bool Shard::has(std::filesystem::path const& path) const {
    if (is_all()) return true;
    auto const key = content_key(path);
    return !key || *key % count == index;
}

Result<Shard> parse_shard(std::string const& text) {
    if (text == "auto") return of_environment(text, std::nullopt);
    auto const slash = text.find('/');
    auto const count = slash == std::string::npos
                           ? std::nullopt
                           : count_in(std::string_view(text).substr(slash + 1));
    if (count && *count > 0) {
        if (text.starts_with("auto/")) return of_environment(text, count);
        auto const index = count_in(std::string_view(text).substr(0, slash));
        if (index && *index < *count) return Shard{*index, *count};
    }
    return bad_shard(text.empty() ? "''" : text,
                     "expected I/N with I from 0 to N-1, auto, or auto/N");
}

void add_shard_flag(CLI::App& app, std::string& text) {
    app.add_option("--shard", text,
                   "only part I of N of the files, 0/4 … 3/4, divided by their contents; auto: as "
                   "the array job says (Slurm, Kubernetes, TASK_ID), auto/N: of N parts")
        ->type_name("I/N");
}

}  // namespace dkv::cli
