#include "cli/render/inspect.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "cli/render/policies.h"
#include "cli/render/ranges.h"
#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

std::uint64_t rows_of(InspectedLayer const& layer) {
    return std::accumulate(layer.lengths.begin(), layer.lengths.end(), std::uint64_t{0});
}

double rows_per_head(InspectedFile const& file) {
    std::uint64_t rows = 0;
    for (auto const& layer : file.layers)
        rows += rows_of(layer);
    auto const heads = std::uint64_t{file.facts.geometry.layers} * file.facts.geometry.kv_heads;
    return static_cast<double>(rows) / static_cast<double>(heads);
}

std::uint64_t rows_bytes(InspectedFile const& file) {
    std::uint64_t bytes = 0;
    for (auto const& layer : file.layers)
        bytes += layer.bytes;
    return bytes;
}

/// Where in the prompt the tokens are that are kept, a character for each part.
std::string map_text(LayerPositions const& positions, Style const& style) {
    constexpr std::array kBars{" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    constexpr std::array kDigits{".", "1", "2", "3", "4", "5", "6", "8", "9"};
    std::string map;
    for (double const share : positions.share) {
        // Nothing at all looks like nothing; anything else does not.
        auto const level =
            share <= 0 ? 0U : std::clamp(static_cast<unsigned>(std::lround(share * 8)), 1U, 8U);
        map += style.unicode ? kBars[level] : kDigits[level];
    }
    return map;
}

std::string kept_text(InspectedFile const& file) {
    auto const& facts = file.facts;
    if (facts.is_whole()) return fmt::format("{} tokens, all kept", facts.prompt_tokens);
    if (!facts.compacted)
        return fmt::format("{} tokens, kept of {}", facts.prompt_tokens, facts.kept_of);
    double const mean = rows_per_head(file);
    return fmt::format("{} tokens; {:.1f} kept per layer and head ({})", facts.prompt_tokens, mean,
                       human_share(mean / facts.prompt_tokens));
}

std::ptrdiff_t layers_with_sinks(CacheFacts const& facts) {
    return std::ranges::count_if(facts.sink_logits,
                                 [](auto const& sinks) { return !sinks.empty(); });
}

std::string queries_text(CacheFacts const& facts) {
    if (facts.query_rows == 0 && facts.compacted) return "none";
    if (facts.query_rows == 0)
        return "none: for policies that rank by attention, dkv capture adds them";
    return fmt::format("of the last {}", counted(facts.query_rows, "token"));
}

std::string sinks_text(CacheFacts const& facts) {
    auto const layers = layers_with_sinks(facts);
    return fmt::format("learned, a logit for each of {} in {}",
                       counted(facts.geometry.q_heads, "query head"),
                       layers == facts.geometry.layers
                           ? "every layer"
                           : fmt::format("{} of {} layers", layers, facts.geometry.layers));
}

std::string rope_text(RopeFacts const& rope) {
    if (!rope.order_known) return "unknown, and so is which dims turn together";
    if (rope.theta == 0 && !rope.interleaved) return "unknown";
    std::string text = fmt::format(
        "theta {}, {}", rope.theta == 0 ? "unknown" : fmt::format("{}", rope.theta),
        rope.interleaved ? "adjacent dims turn together" : "dims of the two halves turn together");
    if (rope.dims != 0) text += fmt::format(", the first {} dims", rope.dims);
    return rope.scaling.empty() ? text : text + ", scaled: " + one_line(rope.scaling);
}

std::string checks_text(InspectedFile const& file) {
    bool const sums = file.facts.has_checksums;
    if (file.verified)
        return sums ? "verified: every checksum is right, and K and V are finite"
                    : "unverified: no checksums; every byte was read, and K and V are finite";
    return sums ? "checksums are there; --verify reads everything and compares them"
                : "unverified: no checksums; --verify reads everything and looks for values that "
                  "are not finite";
}

/// Takes a word out of the provenance; "" where there is none.
std::string taken(std::map<std::string, std::string>& words, std::string_view key) {
    auto const found = words.find(std::string(key));
    if (found == words.end()) return "";
    auto value = one_line(found->second);
    words.erase(found);
    return value;
}

/// "dynamickv, capacity 512, window 32 …": the numbers that it looks at, the size first.
std::string policy_words(std::string const& policy, std::map<std::string, std::string>& left) {
    std::string words = policy;
    for (Parameter const& parameter : parameters()) {
        auto const value = taken(left, parameter.name);
        if (value.empty() || !uses(policy, parameter)) continue;
        words += fmt::format(", {} {}", parameter.flag().substr(2), value);
    }
    return words;
}

/// What a file went through.
Fields provenance_fields(CacheFacts const& facts) {
    auto left = facts.provenance;
    Fields fields;
    if (auto const policy = taken(left, "policy"); !policy.empty())
        fields.emplace_back("policy", policy_words(policy, left));
    std::string source = taken(left, "source");
    for (auto const& [key, unit] : {std::pair{"source_format", ""},
                                    {"source_bytes", " bytes"},
                                    {"source_crc32", " is its CRC-32"}})
        if (auto const value = taken(left, key); !value.empty())
            source += (source.empty() ? "" : ", ") + value + unit;
    if (!source.empty()) fields.emplace_back("made from", source);
    if (auto const version = taken(left, "dkv"); !version.empty())
        fields.emplace_back("made by", "dkv " + version);
    for (auto const& [key, value] : left)
        fields.emplace_back(one_line(key), one_line(value));
    return fields;
}

/// What an element is in the file.
std::string type_text(CacheFacts const& facts) {
    if (!facts.stored) return std::string(name_of(facts.geometry.dtype));
    return facts.stored->type + (facts.stored->rotation_unknown ? ", perhaps rotated" : "");
}

/// Without queries the number of query heads is unknown.
std::string geometry_text(CacheFacts const& facts) {
    auto const& geometry = facts.geometry;
    if (facts.query_rows > 0 || geometry.q_heads != geometry.kv_heads)
        return describe(geometry) + (facts.stored ? ", in the file " + type_text(facts) : "");
    return fmt::format("{} layers, {} KV heads, head_dim {}, {}", geometry.layers,
                       geometry.kv_heads, geometry.head_dim, type_text(facts));
}

Fields facts_fields(InspectedFile const& file) {
    auto const& facts = file.facts;
    Fields fields{{"format", one_line(facts.format_words)},
                  {"model", facts.model.empty() ? "unknown" : one_line(facts.model)},
                  {"geometry", geometry_text(facts)},
                  {"prompt", kept_text(file)},
                  {"queries", queries_text(facts)},
                  {"rope", rope_text(facts.rope)}};
    if (facts.scale != 0 || facts.softcap != 0)
        fields.emplace_back("logits",
                            fmt::format("scale {}, soft cap {}", facts.scale, facts.softcap));
    if (!facts.sink_logits.empty()) fields.emplace_back("sinks", sinks_text(facts));
    if (facts.has_scores) fields.emplace_back("scores", "of every token, for --policy scores");
    if (!facts.tokens.empty())
        fields.emplace_back("token ids", counted(facts.tokens.size(), "token"));
    if (!facts.sliding.empty()) fields.emplace_back("sliding", facts.sliding);
    if (!facts.media.empty()) fields.emplace_back("media", facts.media);
    if (!facts.checkpoints.empty()) fields.emplace_back("checkpoints", facts.checkpoints);
    for (auto& field : provenance_fields(facts))
        fields.push_back(std::move(field));
    fields.emplace_back("size", fmt::format("{}, {} of it K and V", human_bytes(facts.file_bytes),
                                            human_bytes(rows_bytes(file))));
    fields.emplace_back("checks", checks_text(file));
    return fields;
}

std::vector<std::string> layer_cells(InspectedFile const& file,
                                     InspectedLayer const& layer,
                                     Style const& style) {
    auto const& facts = file.facts;
    auto const [least, most] = std::ranges::minmax(layer.lengths);
    double const mean =
        static_cast<double>(rows_of(layer)) / static_cast<double>(layer.lengths.size());
    std::vector<std::string> cells{
        least == most ? std::to_string(least) : fmt::format("{} to {}", least, most),
        human_share(mean / facts.prompt_tokens), human_bytes(layer.bytes)};
    if (!facts.compacted) return cells;
    auto const& at = layer.positions;
    cells.push_back(fmt::format("{} to {}", at.first, at.last));
    cells.push_back(fmt::format(
        "{:.1f}", static_cast<double>(at.runs) / static_cast<double>(layer.lengths.size())));
    cells.push_back(map_text(at, style));
    return cells;
}

Result<LayerPositions> positions_of(SavedCache const& file, std::uint32_t index) {
    auto const& facts = file.facts();
    LayerPositions found{.first = 0,
                         .last = static_cast<std::int32_t>(facts.prompt_tokens) - 1,
                         .runs = facts.geometry.kv_heads,
                         .share = {}};
    found.share.fill(1);
    if (!facts.compacted) return found;
    auto const layer = DKV_TRY(file.layer(index));
    found = {.first = static_cast<std::int32_t>(facts.prompt_tokens), .last = -1};
    std::array<double, kPromptParts> kept = {};
    for (std::uint32_t head = 0; head < facts.geometry.kv_heads; ++head) {
        auto const positions = layer.positions_of(head);
        for (std::size_t row = 0; row < positions.size(); ++row) {
            found.runs += row == 0 || positions[row] != positions[row - 1] + 1 ? 1 : 0;
            auto const part =
                static_cast<std::uint64_t>(positions[row]) * kPromptParts / facts.prompt_tokens;
            kept[std::min<std::uint64_t>(part, kPromptParts - 1)] += 1;
        }
        if (positions.empty()) continue;
        found.first = std::min(found.first, positions.front());
        found.last = std::max(found.last, positions.back());
    }
    for (std::size_t part = 0; part < kPromptParts; ++part) {
        auto const begin = (part * facts.prompt_tokens + kPromptParts - 1) / kPromptParts;
        auto const end = ((part + 1) * facts.prompt_tokens + kPromptParts - 1) / kPromptParts;
        if (end > begin)
            found.share[part] =
                kept[part] / static_cast<double>((end - begin) * facts.geometry.kv_heads);
    }
    return found;
}

Json json_of(RopeFacts const& rope) {
    if (rope.theta == 0 && !rope.interleaved) return {};
    return {{"theta", rope.theta},
            {"interleaved", rope.interleaved},
            {"dims", rope.dims},
            {"scaling", rope.scaling}};
}

Json json_of(InspectedLayer const& layer, bool compacted) {
    Json json{{"lengths", layer.lengths}, {"bytes", layer.bytes}};
    if (compacted)
        json["positions"] = {{"first", layer.positions.first},
                             {"last", layer.positions.last},
                             {"runs", layer.positions.runs},
                             {"share_by_sixteenth", layer.positions.share}};
    return json;
}

}  // namespace

Result<InspectedFile> inspect_file(SavedCache const& file, std::string path) {
    InspectedFile inspected{
        .path = std::move(path), .facts = file.facts(), .layers = {}, .verified = false};
    auto const& geometry = inspected.facts.geometry;
    for (std::uint32_t index = 0; index < geometry.layers; ++index) {
        InspectedLayer layer;
        for (std::uint32_t head = 0; head < geometry.kv_heads; ++head)
            layer.lengths.push_back(inspected.facts.length(index, head));
        layer.bytes = inspected.facts.layer_bytes(index);
        layer.positions = DKV_TRY(positions_of(file, index));
        inspected.layers.push_back(std::move(layer));
    }
    return inspected;
}

std::string inspect_text(InspectedFile const& file, Style const& style) {
    using enum Column::Align;
    std::vector<Column> columns{
        {"LAYERS", Left}, {"TOKENS PER HEAD", Right}, {"KEPT", Right}, {"BYTES A LAYER", Right}};
    if (file.facts.compacted)
        for (auto& column : std::vector<Column>{
                 {"POSITIONS", Right}, {"RUNS PER HEAD", Right}, {"WHERE IN THE PROMPT", Left}})
            columns.push_back(std::move(column));
    Table table(std::move(columns));
    add_ranges(table, file.layers.size(),
               [&](std::size_t layer) { return layer_cells(file, file.layers[layer], style); });
    return fmt::format("{}\n{}\n{}", toned(Tone::Bold, one_line(file.path), style),
                       fields_text(facts_fields(file), 2, style), table.text(style));
}

Json to_json(InspectedFile const& file) {
    auto const& facts = file.facts;
    Json layers = Json::array();
    for (auto const& layer : file.layers)
        layers.push_back(json_of(layer, facts.compacted));
    return {{"file", file.path},
            {"format", name_of(facts.format)},
            {"format_words", facts.format_words},
            {"model", facts.model},
            {"layers", facts.geometry.layers},
            {"q_heads", facts.geometry.q_heads},
            {"kv_heads", facts.geometry.kv_heads},
            {"head_dim", facts.geometry.head_dim},
            {"dtype", type_text(facts)},
            {"prompt_tokens", facts.prompt_tokens},
            {"compacted", !facts.is_whole()},
            {"tokens_per_head", rows_per_head(file)},
            {"query_rows", facts.query_rows},
            {"scale", facts.scale},
            {"softcap", facts.softcap},
            {"sink_layers", layers_with_sinks(facts)},
            {"scores", facts.has_scores},
            {"rope", json_of(facts.rope)},
            {"token_ids", facts.tokens.size()},
            {"sliding", facts.sliding},
            {"media", facts.media},
            {"checkpoints", facts.checkpoints},
            {"provenance", facts.provenance},
            {"file_bytes", facts.file_bytes},
            {"rows_bytes", rows_bytes(file)},
            {"checksums", facts.has_checksums},
            {"verified", file.verified},
            {"by_layer", layers}};
}

}  // namespace dkv::cli
