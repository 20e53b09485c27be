#include "sidecar/policy/presets.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

namespace dkv {
namespace {

PolicyRequest paper(Pool pool, double r_max) {
    PolicyRequest settings;
    settings.window = 8;
    settings.kernel = 7;
    settings.pool = pool;
    settings.r_max = r_max;
    settings.r_min = 0;
    settings.update_interval = 4;
    return settings;
}

std::string lower(std::string_view text) {
    std::string result(text);
    std::ranges::transform(result, result.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return result;
}

}  // namespace

std::span<Preset const> presets() {
    static std::array const kPresets{
        Preset{"paper", "mistral", paper(Pool::Max, 10)},
        Preset{"paper", "qwen2", paper(Pool::Max, 5)},
        Preset{"paper", "", paper(Pool::Avg, 10)},  // Llama-3, InternLM; and what it did not try.
    };
    return kPresets;
}

Result<PolicyRequest> with_preset(PolicyRequest const& request, std::string_view model) {
    if (request.preset.empty()) return request;
    std::string const in_lower = lower(model);
    auto const found = std::ranges::find_if(presets(), [&](Preset const& preset) {
        return preset.name == request.preset && in_lower.find(preset.family) != std::string::npos;
    });
    if (found == presets().end())
        return Error{ErrorCode::NotFound,
                     "no preset is called \"" + request.preset + "\"; there is paper"};

    PolicyRequest result = request;
    auto const fill = [](char const*, auto& field, auto const& published) {
        if (!field) field = published;
    };
    each_number(fill, result, found->settings);
    return result;
}

}  // namespace dkv
