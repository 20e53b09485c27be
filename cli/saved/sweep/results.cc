#include "cli/saved/sweep/results.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <numeric>
#include <span>
#include <unistd.h>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <system_error>

#include "cli/render/params.h"
#include "cli/render/text.h"
#include "protocol/container/crc32.h"
#include "protocol/container/mapped_file.h"

namespace dkv::cli {
namespace {

/// Of the whole of it: a sweep reads every byte several times anyway.
Result<void> add_file(std::uint32_t& crc, std::uint64_t& size, std::filesystem::path const& path) {
    auto const file = DKV_TRY(MappedFile::open(path));
    crc = crc32(crc, file.bytes());
    size += file.bytes().size();
    return {};
}

Json lengths_by_layer(offline::SweepRow const& row, Geometry const& geometry) {
    Json lengths = Json::array();
    for (std::size_t at = 0; at + geometry.kv_heads <= row.lengths.size(); at += geometry.kv_heads)
        lengths.push_back(std::span(row.lengths).subspan(at, geometry.kv_heads));
    return lengths;
}

template <class T>
Json list_or_null(std::vector<T> const& list) {
    return list.empty() ? Json() : Json(list);
}

std::string cell(Json const& value) {
    if (value.is_null()) return "";
    return csv_cell(value.is_string() ? value.get<std::string>() : value.dump());
}

Json mean_of(Json const& list) {
    if (!list.is_array() || list.empty()) return {};
    double sum = 0;
    for (auto const& value : list)
        sum += value.get<double>();
    return sum / static_cast<double>(list.size());
}

}  // namespace

Error ResultsFile::io(char const* what) const {
    return {ErrorCode::Io, fmt::format("{}: {}: {}", path_.string(), what, std::strerror(errno))};
}

Result<ResultsFile> ResultsFile::open(std::filesystem::path const& path) {
    // Nothing waits for a pipe's other end.
    ResultsFile results(
        UniqueFd(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666)),
        path);
    if (!results.file_) return results.io("cannot be opened");
    struct stat facts {};
    if (::fstat(results.file_.get(), &facts) != 0 || !S_ISREG(facts.st_mode))
        return Error{ErrorCode::Io, path.string() + ": not a regular file"};
    if (::flock(results.file_.get(), LOCK_EX | LOCK_NB) != 0)
        return Error{ErrorCode::LimitExceeded, path.string() + ": another sweep writes it"};
    auto const text = DKV_TRY(results.read());
    DKV_TRY(results.take(text));
    return results;
}

Result<std::string> ResultsFile::read() const {
    std::string text;
    std::array<char, 1U << 16U> buffer;
    while (true) {
        auto const got =
            ::pread(file_.get(), buffer.data(), buffer.size(), static_cast<off_t>(text.size()));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return io("cannot be read");
        if (got == 0) return text;
        text.append(buffer.data(), static_cast<std::size_t>(got));
    }
}

Result<void> ResultsFile::take(std::string const& text) {
    std::size_t begin = 0;
    std::size_t line = 1;
    for (auto end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
        auto row = Json::parse(text.data() + begin, text.data() + end, nullptr, false);
        if (!row.is_object() || !row.contains("file"))
            return Error{ErrorCode::CorruptData,
                         fmt::format("{}, line {}: no result of a sweep", path_.string(), line)};
        add(std::move(row));
        begin = end + 1;
        ++line;
    }
    bytes_ = begin;
    if (begin < text.size() && ::ftruncate(file_.get(), static_cast<off_t>(begin)) != 0)
        return io("cannot be cut");
    return {};
}

void ResultsFile::add(Json row) {
    by_fingerprint_[row.value("fingerprint", "")].push_back(rows_.size());
    rows_.push_back(std::move(row));
}

Json const* ResultsFile::find(SweepFile const& file,
                              std::string const& fingerprint,
                              Json const& asked,
                              bool with_error) const {
    auto const known = by_fingerprint_.find(fingerprint);
    if (known == by_fingerprint_.end()) return nullptr;
    for (auto const index : known->second) {
        auto const& row = rows_[index];
        if (row.value("file", "") == file.path && row.value("task", "") == file.task &&
            row.contains("asked") && row.at("asked") == asked &&
            row.value("with_error", false) == with_error && row.contains("damage"))
            return &row;
    }
    return nullptr;
}

Result<void> ResultsFile::append(std::vector<Json> const& rows) {
    std::string text;
    for (auto const& row : rows)
        text += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    std::size_t written = 0;
    while (written < text.size()) {
        auto const put = ::write(file_.get(), text.data() + written, text.size() - written);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) {
            auto error = io("cannot be written");
            // Without the part of it that went through.
            return ::ftruncate(file_.get(), static_cast<off_t>(bytes_)) == 0 ? error
                                                                             : io("cannot be cut");
        }
        written += static_cast<std::size_t>(put);
    }
    if (::fsync(file_.get()) != 0) return io("cannot be written");
    bytes_ += text.size();
    for (auto const& row : rows)
        add(row);
    return {};
}

Result<std::string> fingerprint(std::filesystem::path const& path) {
    std::uint32_t crc = 0;
    std::uint64_t size = 0;
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
        std::vector<std::filesystem::path> files;
        for (std::filesystem::recursive_directory_iterator at(path, error);
             !error && at != std::filesystem::recursive_directory_iterator(); at.increment(error))
            if (at->is_regular_file(error)) files.push_back(at->path());
        std::ranges::sort(files);
        for (auto const& file : files) {
            auto const name = file.lexically_relative(path).string();
            crc = crc32(crc, std::as_bytes(std::span(name.c_str(), name.size() + 1)));
            DKV_TRY(add_file(crc, size, file));
        }
    } else {
        DKV_TRY(add_file(crc, size, path));
    }
    return fmt::format("{:x}-{:08x}", size, crc);
}

Json row_json(SweepFile const& file,
              std::string const& fingerprint,
              CacheFacts const& facts,
              GridPoint const& point,
              bool with_error,
              offline::SweepRow const& row) {
    auto const rows = std::accumulate(row.lengths.begin(), row.lengths.end(), std::uint64_t{0});
    bool const failed = !row.error.empty();
    Json json{{"file", file.path},
              {"fingerprint", fingerprint},
              {"model", facts.model},
              {"prompt_tokens", facts.prompt_tokens}};
    if (!file.task.empty()) json["task"] = file.task;
    json["policy"] = point.asked.at("policy");
    json["capacity"] = failed || row.params.keep_mass ? Json() : Json(row.params.capacity);
    json["asked"] = point.asked;
    json["params"] = failed ? Json::object() : params_json(row.params);
    json["tokens_per_head"] =
        row.lengths.empty()
            ? Json()
            : Json(static_cast<double>(rows) / static_cast<double>(row.lengths.size()));
    json["bytes_kept"] = row.bytes_kept;
    json["bytes_full"] = row.bytes_full;
    json["damage"] = list_or_null(row.damage);
    json["mass_kept"] = list_or_null(row.mass_kept);
    json["error_l2"] = list_or_null(row.error_l2);
    json["lengths"] = lengths_by_layer(row, facts.geometry);
    json["with_error"] = with_error;
    json["error"] = row.error;
    return json;
}

std::string csv_text(std::vector<Json> const& rows) {
    constexpr char const* kTitles[] = {
        "file",       "task",       "model",  "prompt_tokens", "policy",
        "capacity",   "window",     "kernel", "pool",          "tokens_per_head",
        "bytes_kept", "bytes_full", "damage", "mass_kept",     "error_l2",
        "error"};
    std::string text = fmt::format("{}\n", fmt::join(kTitles, ","));
    for (auto const& row : rows) {
        auto const params = row.value("params", Json::object());
        std::vector<std::string> cells;
        for (std::string const title : kTitles) {
            Json value = row.contains(title) ? row.at(title) : Json();
            if (title == "window" || title == "kernel" || title == "pool")
                value = params.contains(title) ? params.at(title) : Json();
            if (title == "damage" || title == "mass_kept" || title == "error_l2")
                value = mean_of(value);
            cells.push_back(cell(value));
        }
        text += fmt::format("{}\n", fmt::join(cells, ","));
    }
    return text;
}

}  // namespace dkv::cli
