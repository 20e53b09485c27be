#include "cli/saved/sweep/grid.h"

#include <algorithm>
#include <functional>

#include "cli/render/params.h"
#include "cli/render/policies.h"

namespace dkv::cli {
namespace {

using Points = std::vector<GridPoint>;

/// The values of one parameter, in a grid.
struct Axis {
    char const* name;
    std::size_t values;
    std::function<void(GridPoint&, std::size_t value)> set;
};

template <class T>
Axis axis(char const* name, std::vector<T> const& values, std::optional<T> PolicyRequest::*field) {
    return {name, values.size(), [=, &values](GridPoint& point, std::size_t value) {
                point.request.*field = values[value];
                if constexpr (std::is_enum_v<T>)
                    point.asked[name] = name_of(T{values[value]});
                else
                    point.asked[name] = T{values[value]};
            }};
}

std::vector<Axis> sizes(Grid const& grid) {
    return {
#define DKV_SIZE(name, ...) axis(#name, grid.name, &PolicyRequest::name),
#include "protocol/policy/parameters.inc"
    };
}

std::vector<Axis> others(Grid const& grid) {
    return {
#define DKV_NUMBER(name, ...) axis(#name, grid.name, &PolicyRequest::name),
#define DKV_OF_PROFILE(name, ...) axis(#name, grid.name, &PolicyRequest::name),
#include "protocol/policy/parameters.inc"
    };
}

/// Every point once for each value.
Points times(Points const& points, Axis const& axis) {
    Points product;
    for (auto const& point : points)
        for (std::size_t value = 0; value < axis.values; ++value)
            axis.set(product.emplace_back(point), value);
    return product;
}

Result<Points> points_of(Grid const& grid, std::string const& policy) {
    GridPoint first{{.name = policy, .preset = grid.preset, .profile = grid.profile},
                    {{"policy", policy}}};
    if (policy == "fullkv") return Points{first};
    if (!grid.preset.empty() && uses(policy, parameter("preset")))
        first.asked["preset"] = grid.preset;
    if (grid.profile && uses(policy, parameter("profile")))
        first.asked["profile"] = grid.profile->name;

    Points points;
    for (auto const& size : sizes(grid))
        std::ranges::move(times({first}, size), std::back_inserter(points));
    if (points.empty())
        return Error{ErrorCode::InvalidArgument,
                     "a sweep needs sizes: give --capacity, --ratio, --bytes or --keep-mass"};
    for (auto const& axis : others(grid))
        if (axis.values > 0 && uses(policy, parameter(axis.name))) points = times(points, axis);
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

}  // namespace dkv::cli
