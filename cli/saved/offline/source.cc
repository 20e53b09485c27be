#include "cli/saved/offline/source.h"

#include <fmt/format.h>

#include "sidecar/pipeline/row_lists.h"
#include "sidecar/pipeline/spec.h"

namespace dkv::offline {

LayerSource source_of(CacheFacts const& facts, SavedLayer const& layer) {
    return {.keys = layer.keys,
            .values = layer.values,
            .queries = facts.query_rows > 0 ? layer.queries : RowsView(),
            .scores = layer.scores,
            .scale = facts.scale,
            .softcap = facts.softcap,
            .sink_logits = layer.sink_logits};
}

Result<void> check_queries(CacheFacts const& facts, std::string const& name, std::uint32_t wanted) {
    if (facts.query_rows >= wanted && facts.query_rows > 0) return {};
    return Error{
        ErrorCode::InvalidArgument,
        fmt::format("{} needs the queries of the last {} tokens, and the file has {}", name, wanted,
                    facts.query_rows == 0 ? "none" : std::to_string(facts.query_rows))};
}

std::uint32_t queries_needed(CacheFacts const& facts, PolicyParams const& params, Ranking ranking) {
    if (ranking == Ranking::Accumulated) return facts.prompt_tokens;
    // What a surrogate can do without uses the queries that there are.
    if (ranking == Ranking::Joined && facts.query_rows == 0) return 0;
    return ranking == Ranking::Scores || ranking == Ranking::Joined ? params.window : 0;
}

Result<void> check_queries_needed(CacheFacts const& facts,
                                  PolicyParams const& params,
                                  Ranking ranking) {
    if (ranking == Ranking::Given && !facts.has_scores)
        return Error{ErrorCode::InvalidArgument,
                     params.name +
                         " needs scores of every token, and the file has none: `dkv capture "
                         "--replay MODEL FILE` works them out"};
    std::uint32_t const wanted = queries_needed(facts, params, ranking);
    if (wanted == 0) return {};
    auto checked = check_queries(facts, params.name, wanted);
    if (checked) return checked;
    bool const fewer_would_do = facts.query_rows > 0 && ranking != Ranking::Accumulated;
    return Error{checked.error().code,
                 checked.error().message +
                     (fewer_would_do ? fmt::format(": a window of {} would do", facts.query_rows)
                                     : ": `dkv capture MODEL FILE` works them out") +
                     "; reuse, knorm, keydiff and streamingllm need none"};
}

std::vector<std::int32_t> kept_rows(Plan const& plan, std::uint32_t layer) {
    JobSpec const& spec = plan.spec();
    return packed_rows(plan.layer(layer), spec.prompt_tokens - spec.params.window,
                       spec.params.window)
        .positions;
}

}  // namespace dkv::offline
