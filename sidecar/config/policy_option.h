// One parameter of a policy as a flag of CLI11: a value, or a list of them.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "protocol/policy/parameters.h"
#include "sidecar/config/profile_file.h"

namespace dkv {

template <class T>
std::map<std::string, T> words_of(Parameter const& row) {
    std::map<std::string, T> words;
    if constexpr (std::is_same_v<T, bool>)
        words = {{"on", true}, {"off", false}};
    else
        for (std::size_t number = 0; number < row.words.size(); ++number)
            words.emplace(row.words[number], static_cast<T>(number));
    return words;
}

template <class T>
constexpr bool kIsWord = std::is_enum_v<T> || std::is_same_v<T, bool>;

template <class T>
CLI::Option* add_option(CLI::App& app, Parameter const& row, std::optional<T>& field) {
    if constexpr (kIsWord<T>) {
        auto const words = words_of<T>(row);
        return app
            .add_option_function<std::string>(
                row.flag(), [&field, words](std::string const& word) { field = words.at(word); },
                std::string(row.brief))
            ->check(CLI::IsMember(words));
    } else {
        auto* const option = app.add_option(row.flag(), field, std::string(row.brief));
        if (row.kind == ParameterKind::Bytes) option->transform(CLI::AsSizeValue(false));
        return option;
    }
}

/// Several values, with commas between them.
template <class T>
CLI::Option* add_option(CLI::App& app, Parameter const& row, std::vector<T>& list) {
    CLI::Option* option = nullptr;
    if constexpr (kIsWord<T>) {
        auto const words = words_of<T>(row);
        option = app.add_option_function<std::vector<std::string>>(
                        row.flag(),
                        [&list, words](std::vector<std::string> const& given) {
                            for (auto const& word : given)
                                list.push_back(words.at(word));
                        },
                        std::string(row.brief))
                     ->check(CLI::IsMember(words));
    } else {
        option = app.add_option(row.flag(), list, std::string(row.brief));
        if (row.kind == ParameterKind::Bytes) option->transform(CLI::AsSizeValue(false));
    }
    return option->delimiter(',')->type_name("LIST");
}

inline CLI::Option* add_option(CLI::App& app, Parameter const& row, std::string& field) {
    return app.add_option(row.flag(), field, std::string(row.brief));
}

inline CLI::Option* add_option(CLI::App& app,
                               Parameter const& row,
                               std::shared_ptr<Profile const>& field) {
    return app
        .add_option_function<std::string>(
            row.flag(),
            [&field, flag = row.flag()](std::string const& path) {
                auto profile = read_profile(path);
                if (!profile) throw CLI::ValidationError(flag, profile.error().message);
                field = std::make_shared<Profile>(std::move(profile).value());
            },
            std::string(row.brief))
        ->type_name("FILE");
}

}  // namespace dkv
