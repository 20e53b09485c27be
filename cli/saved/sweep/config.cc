#include "cli/saved/sweep/config.h"

#include <algorithm>
#include <sstream>
#include <toml++/toml.h>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "protocol/container/mapped_file.h"

namespace dkv::cli {
namespace {

namespace fs = std::filesystem;

/// As keys are spelled: a list has several values.
std::string plural(std::string_view name) {
    if (name == "capacity") return "capacities";
    if (name == "keep_mass") return "masses";
    return std::string(name) + (name.ends_with('s') ? "" : "s");
}

template <class T>
std::string expected() {
    if constexpr (std::is_enum_v<T>)
        return fmt::format("{}", fmt::join(kWordsOf<T>, " or "));
    else if constexpr (std::is_same_v<T, bool>)
        return "true or false";
    else if constexpr (std::is_same_v<T, std::string>)
        return "a string";
    else if constexpr (std::is_same_v<T, std::uint64_t>)
        return "a number of bytes, or 512MiB";
    else
        return std::is_same_v<T, double> ? "a number" : "a count";
}

std::optional<std::uint64_t> bytes_of(std::string text) {
    try {
        CLI::Validator const as_size = CLI::AsSizeValue(false);
        if (!text.empty() && as_size(text).empty()) return std::stoull(text);
    } catch (CLI::ValidationError const&) {
    }
    return std::nullopt;
}

template <class T>
std::optional<T> value_of(toml::node const& node) {
    if constexpr (std::is_enum_v<T>) {
        auto const word = std::ranges::find(kWordsOf<T>, node.value_or(std::string_view()));
        if (word != kWordsOf<T>.end()) return static_cast<T>(word - kWordsOf<T>.begin());
    } else if constexpr (std::is_same_v<T, std::uint32_t>) {
        auto const count = node.value_exact<std::int64_t>();
        if (count && *count >= 0 && *count <= std::int64_t{UINT32_MAX})
            return static_cast<T>(*count);
    } else if constexpr (std::is_same_v<T, std::uint64_t>) {
        auto const number = node.value_exact<std::int64_t>();
        std::string text = number ? fmt::format("{}", *number) : node.value_or(std::string());
        return bytes_of(text);
    } else if constexpr (std::is_same_v<T, double>) {
        if (node.is_number()) return node.value<double>();  // A whole number is a ratio, too.
    } else {
        return node.value_exact<T>();
    }
    return std::nullopt;
}

class Reader {
public:
    explicit Reader(fs::path path) : path_(std::move(path)) {}

    Result<SweepConfig> read(toml::table const& table) {
        for (auto const& [key, node] : table)
            DKV_TRY(take(key.str(), node));
        return std::move(config_);
    }

    Error wrong(toml::source_region const& at, std::string const& what) const {
        return {ErrorCode::CorruptData,
                fmt::format("{}, line {}: {}", path_.string(), at.begin.line, what)};
    }

private:
    Result<void> take(std::string_view key, toml::node const& node) {
        Grid& grid = config_.grid;
        if (key == "files") return files(node);
        if (key == "output") return path(key, node, config_.output);
        if (key == "csv") return path(key, node, config_.csv);
        if (key == "policies") return list(key, node, grid.policies);
        if (key == "error") {
            config_.error = node.value_exact<bool>();
            if (!config_.error) return wrong(node.source(), "error is neither true nor false");
            return {};
        }
        return parameter_values(key, node);
    }

    Result<void> parameter_values(std::string_view key, toml::node const& node) {
        std::optional<Result<void>> taken;
        std::string known = "files, output, csv, error, policies";
        each_value(
            [&](std::string_view name, auto& values) {
                known += fmt::format(", {}", plural(name));
                if (key == plural(name)) taken = list(key, node, values);
            },
            config_.grid);
        if (taken) return std::move(*taken);
        return wrong(node.source(), fmt::format("'{}' is unknown; known are {}", key, known));
    }

    std::string beside(std::string const& path) const {
        return fs::path(path).is_absolute()
                   ? path
                   : (path_.parent_path() / path).lexically_normal().string();
    }

    Result<void> path(std::string_view key, toml::node const& node, std::string& target) {
        auto const text = node.value_exact<std::string>();
        if (!text || text->empty())
            return wrong(node.source(), fmt::format("{} is not a path", key));
        target = beside(*text);
        return {};
    }

    /// A path, or {path = …, task = …}.
    Result<void> files(toml::node const& node) {
        auto const* const array = node.as_array();
        if (array == nullptr) return wrong(node.source(), "files is not an array");
        for (auto const& item : *array) {
            SweepFile file;
            if (auto const text = item.value_exact<std::string>()) {
                file.path = *text;
            } else if (auto const* const table = item.as_table()) {
                file.path = (*table)["path"].value_or(std::string());
                file.task = (*table)["task"].value_or(std::string());
            }
            if (file.path.empty())
                return wrong(item.source(), "a file is a path, or {path = \"…\", task = \"…\"}");
            file.path = beside(file.path);
            config_.files.push_back(std::move(file));
        }
        return {};
    }

    template <class T>
    Result<void> list(std::string_view key, toml::node const& node, std::vector<T>& values) {
        auto const* const array = node.as_array();
        if (array == nullptr) return wrong(node.source(), fmt::format("{} is not an array", key));
        for (auto const& item : *array) {
            auto value = value_of<T>(item);
            if (!value) {
                std::ostringstream found;
                found << toml::node_view(item);
                return wrong(item.source(),
                             fmt::format("{} has {}, not {}", key, found.str(), expected<T>()));
            }
            values.push_back(*std::move(value));
        }
        return {};
    }

    fs::path path_;
    SweepConfig config_;
};

}  // namespace

Result<SweepConfig> read_sweep_config(fs::path const& path) {
    auto const file = DKV_TRY(MappedFile::open(path));
    std::string_view const text(reinterpret_cast<char const*>(file.bytes().data()),
                                file.bytes().size());
    Reader reader(path);
    try {
        return reader.read(toml::parse(text));
    } catch (toml::parse_error const& error) {
        return reader.wrong(error.source(), std::string(error.description()));
    }
}

}  // namespace dkv::cli
