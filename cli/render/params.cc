#include "cli/render/params.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/render/policies.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

/// Every number, whether the policy looks at it or not.
Json all_params(PolicyParams const& params) {
    Json json{{"capacity", params.capacity},
              {"window", params.window},
              {"kernel", params.kernel},
              {"pool", name_of(params.pool)},
              {"reduce", name_of(params.reduce)},
              {"r_max", params.r_max},
              {"r_min", params.r_min},
              {"update_interval", params.update_interval},
              {"sinks", params.sinks},
              {"beta", params.beta},
              {"granularity", name_of(params.granularity)},
              {"score_norm", name_of(params.score_norm)},
              {"query_norm", params.query_norm}};
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
    for (ParameterWords const& words : parameter_words()) {
        auto const found = all.find(std::string(words.name));
        if (found != all.end() && uses(params.name, words)) used[found.key()] = *found;
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
