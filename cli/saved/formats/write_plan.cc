#include "cli/saved/formats/write_plan.h"

#include <algorithm>

#include <fmt/format.h>

namespace dkv {
namespace {

std::span<std::uint32_t const> lengths_of(CacheFacts const& facts, std::uint32_t layer) {
    return std::span(facts.lengths)
        .subspan(std::size_t{layer} * facts.geometry.kv_heads, facts.geometry.kv_heads);
}

/// The rows that every head of a layer has.
Result<std::uint32_t> common_length(WriteRequest const& request, std::uint32_t layer) {
    auto const lengths = lengths_of(request.facts, layer);
    auto const [least, most] = std::ranges::minmax(lengths);
    if (least == most) return least;
    return Error{
        ErrorCode::Unsupported,
        fmt::format("{} has one length for all heads of a layer, and layer {} has heads of "
                    "{} and {} rows: write dkv, or use a policy that keeps them alike",
                    name_of(request.format), layer, least, most)};
}

Result<FilePlan> plan_dkv(WriteRequest const& request) {
    CacheFacts const& facts = request.facts;
    std::optional<QuantisedRows> quantised;
    if (request.bits != RowBits::Own)
        quantised = DKV_TRY(quantised_rows(request.bits, facts.geometry.head_dim));
    std::vector<bool> with_sinks;
    for (auto const& sinks : facts.sink_logits)
        with_sinks.push_back(!sinks.empty());
    auto plan = dkv_plan({.geometry = facts.geometry,
                          .model = facts.model,
                          .prompt_tokens = facts.prompt_tokens,
                          .query_rows = facts.query_rows,
                          .lengths = facts.lengths,
                          .with_tokens = !facts.tokens.empty(),
                          .with_sinks = std::move(with_sinks),
                          .with_scores = facts.has_scores,
                          .quantised = quantised,
                          .refined = request.refined,
                          .scale = facts.scale,
                          .softcap = facts.softcap,
                          .rope = facts.rope,
                          .provenance = facts.provenance});
    return FilePlan{.tensors = std::move(plan.tensors),
                    .metadata = std::move(plan.metadata),
                    .with_crcs = true,
                    .with_positions = true,
                    .with_queries = true,
                    .quantised = quantised};
}

Result<FilePlan> plan_hf(WriteRequest const& request) {
    CacheFacts const& facts = request.facts;
    FilePlan plan{.tensors = {}, .metadata = {{"format", "pt"}}, .with_positions = true};
    // As dkv's own, but for what says that it is dkv's own.
    auto said = DKV_TRY(plan_dkv(request)).metadata;
    for (char const* key : {"format", "version"})
        said.erase(key);
    plan.metadata.merge(said);
    std::string const dtype(container_dtype(facts.geometry.dtype));
    for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer) {
        std::uint64_t const rows = DKV_TRY(common_length(request, layer));
        std::uint64_t const heads = facts.geometry.kv_heads;
        if (rows != facts.prompt_tokens)
            plan.tensors.push_back({fmt::format("positions_{}", layer), "I32", {heads, rows}});
        for (char const* name : {"k", "v"})
            plan.tensors.push_back({fmt::format("{}_{}", name, layer),
                                    dtype,
                                    {1, heads, rows, facts.geometry.head_dim}});
    }
    return plan;
}

/// mlx-lm's own programs want a model and a tokenizer's settings in there; what another mlx-lm file
/// had goes along ("mlx.…" of the provenance). mlx_file.h has the two generations.
std::map<std::string, std::string> mlx_metadata(CacheFacts const& facts, bool counted) {
    std::string const user = counted ? "0." : "1.";
    std::map<std::string, std::string> metadata{
        {user + "model", facts.model},
        {user + "tokenizer_config", "{}"},
        {user + "dkv_n_prompt", std::to_string(std::max(facts.prompt_tokens, facts.kept_of))}};
    for (auto const& [key, value] : facts.provenance) {
        if (key.starts_with("mlx.")) {
            metadata[user + key.substr(4)] = value;
            continue;
        }
        std::string name = user + "dkv_" + key;  // A dot would make mlx-lm's metadata a tree.
        std::replace(name.begin() + 2, name.end(), '.', '_');
        metadata[name] = value;
    }
    if (counted) metadata["2.0"] = "";
    for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer) {
        metadata[fmt::format("{}.{}", counted ? 1 : 2, layer)] = "KVCache";
        if (!counted) {
            metadata[fmt::format("0.{}", layer)] = "";
            continue;
        }
        metadata[fmt::format("2.{}.0", layer + 1)] = fmt::format("{}.2", layer);
        metadata[fmt::format("2.{}.1", layer + 1)] = "scalar";
    }
    return metadata;
}

Result<FilePlan> plan_mlx(WriteRequest const& request) {
    CacheFacts const& facts = request.facts;
    bool const counted = request.format == FileFormat::MlxLm;
    FilePlan plan{.tensors = {},
                  .metadata = mlx_metadata(facts, counted),
                  .from_zero = true,
                  .with_counts = counted};
    std::string const dtype(container_dtype(facts.geometry.dtype));
    for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer) {
        std::uint64_t const rows = DKV_TRY(common_length(request, layer));
        for (int part : {0, 1})
            plan.tensors.push_back({fmt::format("{}.{}", layer, part),
                                    dtype,
                                    {1, facts.geometry.kv_heads, rows, facts.geometry.head_dim}});
        if (counted) plan.tensors.push_back({fmt::format("{}.2", layer), "I32", {}});
    }
    return plan;
}

}  // namespace

Result<FilePlan> file_plan(WriteRequest const& request) {
    switch (request.format) {
        case FileFormat::Dkv: return plan_dkv(request);
        case FileFormat::Hf: return plan_hf(request);
        case FileFormat::MlxLm:
        case FileFormat::MlxLm031: return plan_mlx(request);
        default:
            return Error{ErrorCode::Unsupported,
                         fmt::format("{} is read, not written", name_of(request.format))};
    }
}

}  // namespace dkv
