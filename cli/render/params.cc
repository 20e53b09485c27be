#include "cli/render/params.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/render/policies.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

template <class T>
void put(Json& json, char const* name, T const& value) {
    if constexpr (std::is_enum_v<T>)
        json[name] = name_of(value);
    else
        json[name] = value;
}

/// Every value, whether the policy looks at it or not.
Json all_params(PolicyParams const& params) {
    Json json;
    json["capacity"] = params.capacity;
    each_number([&json](char const* name, auto const& value) { put(json, name, value); }, params);
    if (params.keep_mass) {
        json.erase("capacity");  // It follows from the prompt.
        json["keep_mass"] = *params.keep_mass;
    }
    if (params.profile) {
        json["profile"] = params.profile->name;
        json["profile_alpha"] = params.profile->alpha;
        json["profile_floor"] = params.profile->floor;
    }
    return json;
}

std::string param_text(Json const& value) {
    if (value.is_string()) return one_line(value.get<std::string>());
    if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
    return value.is_number_float() ? fmt::format("{:g}", value.get<double>()) : value.dump();
}

}  // namespace

Json params_json(PolicyParams const& params) {
    Json const all = all_params(params);
    Json used = Json::object();
    for (Parameter const& row : parameters()) {
        auto const found = all.find(std::string(row.name));
        if (found != all.end() && uses(params.name, row)) used[found.key()] = *found;
    }
    return used;
}

std::string params_line(PolicyParams const& params) {
    std::string line = params.name;
    Json const used = params_json(params);
    for (auto const& [key, value] : used.items()) {
        std::string name = key;
        std::ranges::replace(name, '_', '-');
        line += fmt::format(", {} {}", name, param_text(value));
    }
    return line;
}

}  // namespace dkv::cli
