#include "sidecar/config/config_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <toml++/toml.h>

#include <CLI/CLI.hpp>

namespace dkv {
namespace {

/// Where in the file a key stands.
using Lines = std::map<std::string, std::uint32_t, std::less<>>;

class ConfigFile {
public:
    ConfigFile(CLI::App& app, std::string path) : app_(app), path_(std::move(path)) {}

    Result<void> read() {
        std::ifstream stream(path_, std::ios::binary);
        if (!stream)
            return Error{errno == ENOENT ? ErrorCode::NotFound : ErrorCode::Io,
                         "--config '" + path_ + "' cannot be read: " + std::strerror(errno)};
        std::stringstream text;
        // << calls an empty file a failure.
        if (stream.peek() != std::ifstream::traits_type::eof()) text << stream.rdbuf();
        if (stream.bad() || text.fail())
            return Error{ErrorCode::Io, "--config '" + path_ + "' cannot be read"};
        return parse(text.str());
    }

    /// `error` with the place of the key that its message begins with, where the file has it.
    Error placed(Error error) const {
        std::string_view const message = error.message;
        std::string_view const name = message.starts_with("--") ? message.substr(2) : message;
        auto const end = std::min(name.find_first_of(" :,"), name.size());
        std::string key(name.substr(0, end));
        std::ranges::replace(key, '_', '-');
        auto const line = lines_.find(key);
        if (line == lines_.end()) return error;
        return {error.code, at(line->second) + error.message};
    }

private:
    std::string at(std::uint32_t line) const { return path_ + ":" + std::to_string(line) + ": "; }
    Error wrong(std::uint32_t line, std::string const& what) const {
        return {ErrorCode::InvalidArgument, at(line) + what};
    }

    Result<void> parse(std::string const& text) {
        try {
            auto const table = toml::parse(text, path_);
            for (auto const& [key, node] : table)
                DKV_TRY(take(std::string(key.str()), node, key.source().begin.line));
        } catch (toml::parse_error const& error) {
            return wrong(error.source().begin.line,
                         "not TOML: " + std::string(error.description()));
        }
        return {};
    }

    Result<void> take(std::string const& key, toml::node const& node, std::uint32_t line) {
        auto* const option = option_of(key);
        if (option == nullptr) return wrong(line, "no key '" + key + "'" + instead_of(key));
        lines_.emplace(key, line);
        auto const value = text_of(node);
        if (!value)
            return wrong(line, key + " is " + kind_of(node) + ", expected " + expected(*option));
        if (option->count() > 0) return {};
        // As CLI11 does for the command line: convert, check, call back.
        try {
            option->add_result(*value);
            option->run_callback();
        } catch (CLI::ConversionError const&) {
            return wrong(line, key + " is '" + *value + "', expected " + expected(*option));
        } catch (CLI::ValidationError const& error) {
            // The words of --profile's file are its own; else the type's name says it better.
            bool const is_file = option->get_type_name() == "FILE";
            return wrong(line, is_file
                                   ? std::string(error.what())
                                   : key + " is '" + *value + "', expected " + expected(*option));
        }
        return {};
    }

    /// A flag of dkvd that a file may give.
    CLI::Option* option_of(std::string const& key) const {
        if (key == "config" || key == "help" || key == "version") return nullptr;
        return app_.get_option_no_throw("--" + key);
    }

    static std::optional<std::string> text_of(toml::node const& node) {
        if (auto const text = node.value_exact<std::string>()) return *text;
        if (auto const truth = node.value_exact<bool>()) return *truth ? "on" : "off";
        if (!node.is_number()) return std::nullopt;
        std::ostringstream number;
        number << toml::node_view(node);
        return number.str();
    }

    static std::string kind_of(toml::node const& node) {
        if (node.is_table()) return "a table";
        if (node.is_array()) return "an array";
        return "a date or a time";
    }

    static std::string expected(CLI::Option const& option) {
        auto const type = option.get_type_name();
        if (auto const brace = type.find('{'); brace != std::string::npos) {
            std::string words = type.substr(brace + 1, type.find('}') - brace - 1);
            for (auto comma = words.find(','); comma != std::string::npos;
                 comma = words.find(',', comma + 2))
                words.insert(comma + 1, " ");
            return "one of " + words;
        }
        if (type.starts_with("UINT")) return "a count";
        if (type.starts_with("FLOAT")) return "a number";
        return type == "TEXT" ? "a string" : "a " + type;
    }

    /// Of a key that is misspelt: the closest one.
    std::string instead_of(std::string const& key) const {
        std::string best;
        std::size_t least = key.size() / 2 + 1;
        for (auto const* const option : app_.get_options()) {
            auto const& names = option->get_lnames();
            if (names.empty() || option_of(names.front()) == nullptr) continue;
            auto const apart = distance(key, names.front());
            if (apart < least) {
                least = apart;
                best = names.front();
            }
        }
        return best.empty() ? ": dkvd --help lists them, without the dashes"
                            : ": did you mean " + best + "?";
    }

    /// Levenshtein's.
    static std::size_t distance(std::string_view a, std::string_view b) {
        std::vector<std::size_t> row(b.size() + 1);
        for (std::size_t j = 0; j <= b.size(); ++j)
            row[j] = j;
        for (std::size_t i = 0; i < a.size(); ++i) {
            std::size_t corner = row[0]++;
            for (std::size_t j = 0; j < b.size(); ++j) {
                auto const changed = corner + (a[i] == b[j] ? 0 : 1);
                corner = row[j + 1];
                row[j + 1] = std::min({changed, row[j] + 1, corner + 1});
            }
        }
        return row.back();
    }

    CLI::App& app_;
    std::string path_;
    Lines lines_;
};

}  // namespace

Result<void> finish(CLI::App& app, Config& config) {
    if (config.config_file.empty()) return check(config);
    ConfigFile file(app, config.config_file);
    DKV_TRY(file.read());
    auto checked = check(config);
    if (!checked) return file.placed(checked.error());
    return {};
}

Result<Config> read_config(std::vector<std::string> const& arguments) {
    CLI::App app;
    app.allow_extras();
    app.set_help_flag();
    // `dkv --endpoint A serve --endpoint B`
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    Config config;
    add_flags(app, config);
    try {
        app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
    } catch (CLI::ParseError const& error) {
        return Error{ErrorCode::InvalidArgument, error.what()};
    }
    DKV_TRY(finish(app, config));
    return config;
}

Result<Config> read_config_file(std::string const& path) {
    CLI::App app;  // Not parsed: parsing is what reads the environment.
    Config config;
    add_flags(app, config);
    config.config_file = path;
    DKV_TRY(finish(app, config));
    return config;
}

std::vector<std::string> fixed_changes(Config const& before, Config const& after) {
    std::vector<std::string> names;
    auto const compare = [&](char const* name, auto Config::*field) {
        if (before.*field != after.*field) names.emplace_back(name);
    };
    compare("--endpoint", &Config::endpoint);
    compare("--control", &Config::control);
    compare("--secret-key", &Config::secret_key_file);
    compare("--clients", &Config::clients_folder);
    compare("--backend", &Config::backend);
    compare("--threads", &Config::threads);
    compare("--heartbeat-ms", &Config::heartbeat_ms);
    compare("--metrics", &Config::metrics_address);
    compare("--log-format", &Config::log_format);
    return names;
}

}  // namespace dkv
