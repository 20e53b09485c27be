#include "cli/render/diff.h"

#include <fmt/format.h>

#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

using offline::Diff;
using offline::LayerDiff;
using offline::Stored;

std::string mass_text(Stored const& stored) {
    return stored.mass ? human_share(*stored.mass) : "-";
}

std::vector<std::string> cells(std::string name, LayerDiff const& layer) {
    Stored const& a = layer.sides[0];
    Stored const& b = layer.sides[1];
    return {std::move(name),
            fmt::format("{:.1f}", a.tokens_per_head),
            fmt::format("{:.1f}", b.tokens_per_head),
            std::to_string(layer.shared),
            std::to_string(a.only_here),
            std::to_string(b.only_here),
            fmt::format("{}/{}", a.duplicates, b.duplicates),
            mass_text(a),
            mass_text(b),
            human_bytes(a.bytes),
            human_bytes(b.bytes)};
}

std::string side_text(Diff const& diff, std::size_t index) {
    Stored const& total = diff.total.sides[index];
    bool const expanded = diff.heads[index] != diff.geometry.kv_heads;
    std::string const mass =
        total.mass ? mass_text(total) + " of the attention" : std::string("attention unknown");
    std::string text = fmt::format("{} {}: {} of K and V, {}, {} per layer", index == 0 ? "A" : "B",
                                   one_line(diff.names[index]), human_bytes(total.bytes), mass,
                                   counted(diff.heads[index], expanded ? "query head" : "KV head"));
    if (expanded) text += " (it stores a KV head's rows once for each query head)";
    if (total.duplicates > 0)
        text += fmt::format("; {} {} twice", counted(total.duplicates, "token"),
                            total.duplicates == 1 ? "stands" : "stand");
    return text + "\n";
}

Json to_json(Stored const& stored) {
    return {{"tokens_per_head", stored.tokens_per_head},
            {"entries", stored.entries},
            {"duplicates", stored.duplicates},
            {"only_here", stored.only_here},
            {"mass_kept", stored.mass ? Json(*stored.mass) : Json()},
            {"bytes", stored.bytes}};
}

Json to_json(LayerDiff const& layer) {
    return {
        {"shared", layer.shared}, {"a", to_json(layer.sides[0])}, {"b", to_json(layer.sides[1])}};
}

}  // namespace

std::string diff_text(Diff const& diff, Style const& style) {
    using enum Column::Align;
    Table table({{"LAYER", Right},
                 {"A TOKENS", Right},
                 {"B TOKENS", Right},
                 {"BOTH", Right},
                 {"ONLY A", Right},
                 {"ONLY B", Right},
                 {"TWICE", Right},
                 {"A MASS", Right},
                 {"B MASS", Right},
                 {"A BYTES", Right},
                 {"B BYTES", Right}});
    for (std::size_t layer = 0; layer < diff.layers.size(); ++layer)
        table.add(cells(std::to_string(layer), diff.layers[layer]));
    table.add(cells("all", diff.total));
    std::string words = fmt::format(
        "{}, {} tokens", diff.model.empty() ? "a model without a name" : one_line(diff.model),
        diff.prompt_tokens);
    if (diff.capacity > 0) words += fmt::format(", capacity {}", diff.capacity);
    if (diff.window > 0) words += fmt::format(", window {}", diff.window);
    return fmt::format("{}\n{}{}\n{}\n{}{}", words, side_text(diff, 0), side_text(diff, 1),
                       table.text(style),
                       "TOKENS are the mean of a stored head; BOTH, ONLY A and ONLY B count each "
                       "query head's tokens.\n",
                       diff.same() ? "Both keep the same tokens.\n" : "");
}

Json to_json(Diff const& diff) {
    Json layers = Json::array();
    for (LayerDiff const& layer : diff.layers)
        layers.push_back(to_json(layer));
    return {{"model", diff.model},
            {"prompt_tokens", diff.prompt_tokens},
            {"capacity", diff.capacity},
            {"window", diff.window},
            {"kv_heads", diff.geometry.kv_heads},
            {"q_heads", diff.geometry.q_heads},
            {"a", {{"policy", diff.names[0]}, {"heads_stored", diff.heads[0]}}},
            {"b", {{"policy", diff.names[1]}, {"heads_stored", diff.heads[1]}}},
            {"same", diff.same()},
            {"total", to_json(diff.total)},
            {"layers", layers}};
}

}  // namespace dkv::cli
