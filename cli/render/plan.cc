#include "cli/render/plan.h"

#include <algorithm>
#include <span>

#include <fmt/format.h>

#include "cli/render/params.h"
#include "cli/render/ranges.h"
#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

std::span<std::uint32_t const> plan_layer(Plan const& plan, std::size_t layer) {
    auto const heads = plan.model.geometry.kv_heads;
    return std::span(plan.estimate.lengths).subspan(layer * heads, heads);
}

std::string plan_layers_text(Plan const& plan, Style const& style) {
    using enum Column::Align;
    auto const& geometry = plan.model.geometry;
    Table table(
        {{"LAYERS", Left}, {"TOKENS PER HEAD", Right}, {"KEPT", Right}, {"BYTES A LAYER", Right}});
    add_ranges(table, geometry.layers, [&](std::size_t layer) {
        auto const lengths = plan_layer(plan, layer);
        auto const [least, most] = std::ranges::minmax(lengths);
        std::uint64_t rows = 0;
        for (auto const length : lengths)
            rows += length;
        double const share =
            static_cast<double>(rows) /
            static_cast<double>(std::uint64_t{plan.prompt_tokens} * lengths.size());
        return std::vector<std::string>{
            least == most ? std::to_string(least) : fmt::format("{} to {}", least, most),
            human_share(share), human_bytes(rows * 2 * geometry.row_bytes())};
    });
    return table.text(style);
}

}  // namespace

std::string plan_text(Plan const& plan, Style const& style) {
    auto const& estimate = plan.estimate;
    auto const& geometry = plan.model.geometry;
    Fields fields{{"geometry", describe(geometry)},
                  {"policy", params_line(estimate.params)},
                  {"whole", human_bytes(estimate.bytes_full)},
                  {"kept", fmt::format("{} ({})", human_bytes(estimate.bytes_kept),
                                       human_share(estimate.bytes_kept, estimate.bytes_full))},
                  {"peak", fmt::format("{} while the prompt is read, live",
                                       human_bytes(estimate.peak_bytes))}};
    if (plan.model.layers_bounded > 0)
        fields.insert(
            fields.begin() + 1,
            {"beside", fmt::format("{} with a window of their own, which stay as they are",
                                   counted(plan.model.layers_bounded, "layer"))});
    auto text = fmt::format("{}, {}\n{}", toned(Tone::Bold, one_line(plan.model.name), style),
                            counted(plan.prompt_tokens, "token"), fields_text(fields, 2, style));
    if (estimate.lengths.empty())
        return text +
               "  How the layers share it depends on the prompt's attention; the sum does not.\n";
    return text + "\n" + plan_layers_text(plan, style);
}

Json to_json(Plan const& plan) {
    auto const& estimate = plan.estimate;
    Json lengths;
    if (!estimate.lengths.empty()) {
        lengths = Json::array();
        for (std::size_t layer = 0; layer < plan.model.geometry.layers; ++layer)
            lengths.push_back(plan_layer(plan, layer));
    }
    auto const& geometry = plan.model.geometry;
    return {{"model", plan.model.name},
            {"layers", geometry.layers},
            {"layers_bounded", plan.model.layers_bounded},
            {"q_heads", geometry.q_heads},
            {"kv_heads", geometry.kv_heads},
            {"head_dim", geometry.head_dim},
            {"dtype", name_of(geometry.dtype)},
            {"prompt_tokens", plan.prompt_tokens},
            {"policy", estimate.params.name},
            {"params", params_json(estimate.params)},
            {"bytes_full", estimate.bytes_full},
            {"bytes_kept", estimate.bytes_kept},
            {"peak_bytes", estimate.peak_bytes},
            {"lengths", lengths}};
}

}  // namespace dkv::cli
