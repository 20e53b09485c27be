#include "cli/render/profile.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

constexpr std::size_t kLabelColumns = 10;
constexpr std::size_t kShareColumns = 30;

std::string fact_text(Json const& value) {
    if (value.is_string()) return one_line(value.get<std::string>());
    if (value.is_number_float()) return fmt::format("{:g}", value.get<double>());
    if (!value.is_array()) return value.dump();
    std::string text;
    for (Json const& item : value)
        text += (text.empty() ? "" : " ") + fact_text(item);
    return text;
}

bool is_short(Json const& value) {
    return !value.is_object() &&
           !(value.is_array() &&
             (value.size() > 8 || (!value.empty() && value[0].is_structured())));
}

/// "needles 12, texts 8": what fits in words; tables of numbers are for --json.
std::string words_of(Json const& object) {
    std::string text;
    if (!object.is_object()) return text;
    for (auto const& [name, value] : object.items())
        if (is_short(value))
            text += (text.empty() ? "" : ", ") + one_line(name) + " " + fact_text(value);
    return text;
}

Fields fields_of(ProfileFile const& file) {
    Profile const& profile = file.profile;
    Fields fields{
        {"model", fmt::format("{}, {} of {} KV heads", one_line(profile.name),
                              counted(profile.layers, "layer"), file.kv_heads)},
        {"measured", file.granularity == "head" ? "per KV head" : "per layer, the heads alike"},
        {"budgets", fmt::format("in proportion to weight^{:g}, at least {:g} of the mean",
                                profile.alpha, profile.floor)}};
    if (profile.kernel != 0)
        fields.emplace_back("kernel",
                            fmt::format("{}, where the policy names none", profile.kernel));
    if (profile.surrogate)
        fields.emplace_back("surrogate",
                            fmt::format("{} weights, {} KiB; {}", profile.surrogate->weights.size(),
                                        profile.surrogate->weights.size() * 2 / 1024,
                                        words_of(file.surrogate.value("recipe", Json::object()))));
    if (auto const words = words_of(file.recipe); !words.empty())
        fields.emplace_back("recipe", words);
    for (auto const& [task, measured] : file.figures.items())
        if (auto const words = words_of(measured); !words.empty())
            fields.emplace_back("figures", one_line(task) + ": " + words);
    return fields;
}

double share_of(Profile const& profile, std::size_t index) {
    return std::pow(profile.weights[index] / std::ranges::max(profile.weights), profile.alpha);
}

/// One column; each step down is half as much, for a few heads get nearly all.
std::string cell(double share, Style const& style) {
    static constexpr std::array kBlocks{"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    static constexpr std::array kLetters{".", ":", "-", "=", "+", "*", "#", "@"};
    double const halvings = std::min(std::floor(-std::log2(share)), 7.0);
    auto const level = static_cast<std::size_t>(7 - halvings);
    Tone const tone = level == 7 ? Tone::Bad : level >= 5 ? Tone::Warn : Tone::Plain;
    return toned(tone, style.unicode ? kBlocks[level] : kLetters[level], style);
}

std::string label(std::string const& text) {
    return fmt::format("{:<{}}", text, kLabelColumns);
}

/// Layers from left to right, heads from top to bottom, in as many strips as the screen needs.
std::string heat_map(Profile const& profile, Style const& style) {
    std::size_t const room = std::max<std::size_t>(style.columns, kLabelColumns + 10);
    auto const width = static_cast<std::uint32_t>((room - kLabelColumns) / 10 * 10);
    std::string out;
    for (std::uint32_t first = 0; first < profile.layers; first += width) {
        std::uint32_t const end = std::min(profile.layers, first + width);
        out += "\n" + label("layer");
        for (std::uint32_t layer = first; layer < end; layer += 10)
            out += layer + 10 < end ? fmt::format("{:<10}", layer) : std::to_string(layer);
        out += "\n";
        for (std::uint32_t head = 0; head < profile.heads; ++head) {
            out += label(profile.heads == 1 ? "all heads" : fmt::format("head {}", head));
            for (std::uint32_t layer = first; layer < end; ++layer)
                out += cell(share_of(profile, std::size_t{layer} * profile.heads + head), style);
            out += "\n";
        }
    }
    return out + toned(Tone::Dim, label("") + "one step down: half as much of the budget", style) +
           "\n";
}

std::string bars_of(Profile const& profile, Style const& style) {
    std::string out = "\n";
    for (std::uint32_t layer = 0; layer < profile.layers; ++layer)
        for (std::uint32_t head = 0; head < profile.heads; ++head) {
            std::size_t const index = std::size_t{layer} * profile.heads + head;
            out += label(fmt::format("{} . {}", layer, head)) +
                   bar(share_of(profile, index), kShareColumns, style) +
                   fmt::format("  {:.3g}\n", profile.weights[index]);
        }
    return out;
}

std::string budgets_text(ProfileBudgets const& budgets, Style const& style) {
    std::string out =
        "\n" +
        wrapped(fmt::format("Tokens kept of {} at capacity {}, the window of {} included:",
                            budgets.prompt_tokens, budgets.capacity, budgets.window),
                style.columns, 0) +
        "\n";
    std::vector<Column> columns{{"LAYER", Column::Align::Right}};
    for (std::size_t head = 0; head < budgets.lengths.front().size(); ++head)
        columns.push_back({fmt::format("HEAD {}", head), Column::Align::Right});
    Table table(std::move(columns));
    for (std::size_t layer = 0; layer < budgets.lengths.size(); ++layer) {
        std::vector<std::string> cells{std::to_string(layer)};
        for (std::uint32_t const length : budgets.lengths[layer])
            cells.push_back(std::to_string(length));
        table.add(std::move(cells));
    }
    return out + table.text(style);
}

}  // namespace

std::string profile_text(ProfileFile const& file,
                         std::optional<ProfileBudgets> const& budgets,
                         bool bars,
                         Style const& style) {
    std::string out = fields_text(fields_of(file), 0, style) + heat_map(file.profile, style);
    if (bars) out += bars_of(file.profile, style);
    if (budgets) out += budgets_text(*budgets, style);
    return out;
}

Json to_json(ProfileFile const& file, std::optional<ProfileBudgets> const& budgets) {
    Profile const& profile = file.profile;
    Json weights = Json::array();
    for (std::uint32_t layer = 0; layer < profile.layers; ++layer) {
        auto const row =
            std::span(profile.weights).subspan(std::size_t{layer} * profile.heads, profile.heads);
        weights.push_back(std::vector<double>(row.begin(), row.end()));
    }
    Json json{{"name", profile.name},
              {"layers", profile.layers},
              {"kv_heads", file.kv_heads},
              {"granularity", file.granularity},
              {"alpha", profile.alpha},
              {"floor", profile.floor},
              {"kernel", profile.kernel == 0 ? Json() : Json(profile.kernel)},
              {"weights", weights},
              {"model", file.model},
              {"recipe", file.recipe},
              {"figures", file.figures},
              {"surrogate", file.surrogate}};
    if (budgets)
        json["budgets"] = {{"capacity", budgets->capacity},
                           {"prompt_tokens", budgets->prompt_tokens},
                           {"window", budgets->window},
                           {"lengths", budgets->lengths}};
    return json;
}

}  // namespace dkv::cli
