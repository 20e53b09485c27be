#include "cli/saved/sweep/config.h"

#include <sstream>
#include <toml++/toml.h>

#include <fmt/format.h>

#include "protocol/container/mapped_file.h"

namespace dkv::cli {
namespace {

namespace fs = std::filesystem;

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
        if (key == "capacities") return counts(key, node, grid.capacities);
        if (key == "windows") return counts(key, node, grid.windows);
        if (key == "kernels") return counts(key, node, grid.kernels);
        if (key == "ratios") return list(key, node, grid.ratios);
        if (key == "masses") return list(key, node, grid.masses);
        if (key == "bytes") return sizes(node);
        if (key == "pools") return pools(node);
        if (key == "error") {
            config_.error = node.value_exact<bool>();
            if (!config_.error) return wrong(node.source(), "error is neither true nor false");
            return {};
        }
        return wrong(node.source(),
                     fmt::format("there is no {}; known are files, output, csv, policies, "
                                 "capacities, ratios, bytes, masses, windows, kernels, pools, "
                                 "error",
                                 key));
    }

    std::string beside(std::string const& path) const {
        return fs::path(path).is_absolute()
                   ? path
                   : (path_.parent_path() / path).lexically_normal().string();
    }

    Result<void> path(std::string_view key, toml::node const& node, std::string& target) {
        auto const text = node.value_exact<std::string>();
        if (!text || text->empty()) return wrong(node.source(), fmt::format("{} is no path", key));
        target = beside(*text);
        return {};
    }

    /// A path, or {path = …, task = …}.
    Result<void> files(toml::node const& node) {
        auto const* const array = node.as_array();
        if (array == nullptr) return wrong(node.source(), "files is no array");
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
        if (array == nullptr) return wrong(node.source(), fmt::format("{} is no array", key));
        for (auto const& item : *array) {
            // A whole number is a ratio, too; a number is no word.
            auto const value = item.value<T>();
            if (!value || item.is_boolean())
                return wrong(item.source(), fmt::format("{} has a value that cannot be", key));
            values.push_back(*value);
        }
        return {};
    }

    Result<void> counts(std::string_view key,
                        toml::node const& node,
                        std::vector<std::uint32_t>& values) {
        std::vector<std::int64_t> wide;
        DKV_TRY(list(key, node, wide));
        for (auto const value : wide) {
            if (value < 0 || value > std::int64_t{UINT32_MAX})
                return wrong(node.source(),
                             fmt::format("{} has {}, which is no count", key, value));
            values.push_back(static_cast<std::uint32_t>(value));
        }
        return {};
    }

    /// Numbers, or "512MiB".
    Result<void> sizes(toml::node const& node) {
        auto const* const array = node.as_array();
        if (array == nullptr) return wrong(node.source(), "bytes is no array");
        for (auto const& item : *array) {
            auto const number = item.value_exact<std::int64_t>();
            auto const text = number ? std::to_string(*number)
                                     : item.value_exact<std::string>().value_or(std::string());
            auto const size = parse_size(text);
            if (!size) return wrong(item.source(), size.error().message);
            config_.grid.bytes.push_back(size.value());
        }
        return {};
    }

    Result<void> pools(toml::node const& node) {
        DKV_TRY(list("pools", node, config_.grid.pools));
        for (auto const& pool : config_.grid.pools)
            if (pool != "max" && pool != "avg")
                return wrong(node.source(), "pool '" + pool + "' is neither max nor avg");
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
