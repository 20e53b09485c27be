#include "cli/saved/sweep/grid.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <functional>
#include <limits>

#include "cli/render/params.h"
#include "cli/render/policies.h"

namespace dkv::cli {
namespace {

using Points = std::vector<GridPoint>;

/// Every point once for each value; as they are where there is none.
template <class T>
Points times(Points const& points,
             std::vector<T> const& values,
             char const* name,
             std::function<void(PolicyRequest&, T const&)> const& set) {
    if (values.empty()) return points;
    Points product;
    for (auto const& point : points)
        for (auto const& value : values) {
            product.push_back(point);
            set(product.back().request, value);
            product.back().asked[name] = value;
        }
    return product;
}

bool looks_at(std::string const& policy, std::string_view parameter) {
    return std::ranges::any_of(parameter_words(), [&](ParameterWords const& words) {
        return words.name == parameter && uses(policy, words);
    });
}

template <class T>
void append(Points& all,
            Points const& from,
            std::vector<T> const& values,
            char const* name,
            std::optional<T> PolicyRequest::*field) {
    if (values.empty()) return;
    auto const more = times<T>(from, values, name, [field](PolicyRequest& request, T const& value) {
        request.*field = value;
    });
    all.insert(all.end(), more.begin(), more.end());
}

/// The parameters that every point has, by name.
Json fixed_json(PolicyRequest const& fixed) {
    Json json = Json::object();
    auto const put = [&json](char const* name, auto const& value) {
        if (value) json[name] = *value;
    };
    put("r_max", fixed.r_max);
    put("r_min", fixed.r_min);
    put("update_interval", fixed.update_interval);
    put("sinks", fixed.sinks);
    put("beta", fixed.beta);
    put("query_norm", fixed.query_norm);
    put("profile_alpha", fixed.profile_alpha);
    put("profile_floor", fixed.profile_floor);
    if (fixed.reduce) json["reduce"] = name_of(*fixed.reduce);
    if (fixed.granularity) json["granularity"] = name_of(*fixed.granularity);
    if (fixed.score_norm) json["score_norm"] = name_of(*fixed.score_norm);
    if (!fixed.preset.empty()) json["preset"] = fixed.preset;
    if (fixed.profile) json["profile"] = fixed.profile->name;
    return json;
}

Result<Points> points_of(Grid const& grid, std::string const& policy) {
    GridPoint first{grid.fixed, {{"policy", policy}}};
    first.request.name = policy;
    if (policy == "fullkv") return Points{first};

    Points sized;
    append(sized, {first}, grid.capacities, "capacity", &PolicyRequest::capacity);
    append(sized, {first}, grid.ratios, "ratio", &PolicyRequest::ratio);
    append(sized, {first}, grid.bytes, "bytes", &PolicyRequest::bytes);
    append(sized, {first}, grid.masses, "keep_mass", &PolicyRequest::keep_mass);
    if (sized.empty())
        return Error{ErrorCode::InvalidArgument,
                     "a sweep needs sizes: give --capacity, --ratio, --bytes or --keep-mass"};
    auto points = times<std::uint32_t>(sized, grid.windows, "window",
                                       [](auto& request, auto value) { request.window = value; });
    if (looks_at(policy, "kernel"))
        points = times<std::uint32_t>(points, grid.kernels, "kernel",
                                      [](auto& request, auto value) { request.kernel = value; });
    if (looks_at(policy, "pool"))
        points = times<std::string>(points, grid.pools, "pool",
                                    [](auto& request, std::string const& value) {
                                        request.pool = value == "max" ? Pool::Max : Pool::Avg;
                                    });
    Json const fixed = fixed_json(grid.fixed);
    for (auto const& [key, value] : fixed.items())
        for (auto& point : points)
            if (looks_at(policy, key)) point.asked[key] = value;
    return points;
}

}  // namespace

Result<std::vector<GridPoint>> grid_points(Grid const& grid) {
    if (grid.policies.empty())
        return Error{ErrorCode::InvalidArgument, "a sweep needs policies: give --policy"};
    Points all;
    for (auto const& policy : grid.policies) {
        auto const points = DKV_TRY(points_of(grid, policy));
        for (auto const& point : points)
            // Asked for twice is asked for once.
            if (std::ranges::find(all, point.asked, &GridPoint::asked) == all.end())
                all.push_back(point);
    }
    return all;
}

Result<std::uint64_t> parse_size(std::string const& text) {
    std::uint64_t value = 0;
    auto const* const end = text.data() + text.size();
    auto const [at, error] = std::from_chars(text.data(), end, value);
    std::string unit(at, end);
    std::erase(unit, ' ');
    std::ranges::transform(unit, unit.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    for (char const* const suffix : {"ib", "b"})
        if (unit.ends_with(suffix)) {
            unit.resize(unit.size() - std::string_view(suffix).size());
            break;
        }
    auto const power = unit.empty() ? 0 : std::string_view("kmgt").find(unit) + 1;
    bool const known = unit.empty() || (unit.size() == 1 && power > 0 && power <= 4);
    if (error != std::errc() || !known ||
        value > std::numeric_limits<std::uint64_t>::max() >> (10 * power))
        return Error{ErrorCode::InvalidArgument, "'" + text + "' is no size: 4096, 32k, 512MiB"};
    return value << (10 * power);
}

}  // namespace dkv::cli
