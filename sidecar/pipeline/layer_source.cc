#include "sidecar/pipeline/layer_source.h"

#include <cmath>
#include <string>

#include "protocol/base/sink_logits.h"

namespace dkv {
namespace {

Result<void> check_view(char const* name,
                        RowsView const& view,
                        Dtype dtype,
                        std::uint32_t heads,
                        std::uint32_t tokens,
                        std::uint32_t head_dim) {
    if (view.dtype != dtype)
        return Error{ErrorCode::InvalidArgument, std::string(name) + " is " +
                                                     std::string(name_of(view.dtype)) + ", not " +
                                                     std::string(name_of(dtype))};
    DKV_TRY(check_shape(name, view, heads, tokens, head_dim));
    return check_memory(name, view);
}

}  // namespace

Result<void> check(LayerSource const& source, JobSpec const& spec) {
    Traits const can = entry_of(spec.params.name).traits;
    Geometry const& geometry = spec.geometry;
    DKV_TRY(check_view("keys", source.keys, geometry.dtype, geometry.kv_heads, spec.prompt_tokens,
                       geometry.head_dim));
    DKV_TRY(check_view("values", source.values, geometry.dtype, geometry.kv_heads,
                       spec.prompt_tokens, geometry.head_dim));
    if (source.queries.data != nullptr)
        DKV_TRY(check_view("queries", source.queries, geometry.dtype, geometry.q_heads,
                           can.has(Trait::EveryQuery) ? spec.prompt_tokens : spec.params.window,
                           geometry.head_dim));
    if (source.scores.data != nullptr) {
        // One row per query head is the other shape that is allowed.
        bool const per_query_head = source.scores.heads == geometry.q_heads;
        DKV_TRY(check_view("scores", source.scores, Dtype::F32,
                           per_query_head ? geometry.q_heads : geometry.kv_heads,
                           spec.prompt_tokens, 1));
    }
    if (can.has(Trait::Attention) && !foresees(spec.params) && source.queries.data == nullptr &&
        source.scores.data == nullptr)
        return Error{ErrorCode::InvalidArgument, "there are neither queries nor scores, and " +
                                                     spec.params.name + " ranks tokens by them"};
    if (can.has(Trait::Given) && source.scores.data == nullptr)
        return Error{ErrorCode::InvalidArgument,
                     "there are no scores, and " + spec.params.name + " ranks tokens by them"};
    if (!std::isfinite(source.scale) || !std::isfinite(source.softcap) || source.softcap < 0)
        return Error{ErrorCode::InvalidArgument, "scale " + std::to_string(source.scale) +
                                                     " and softcap " +
                                                     std::to_string(source.softcap) +
                                                     " are not both finite, softcap at least 0"};
    return check_sink_logits(source.sink_logits, geometry.q_heads);
}

}  // namespace dkv
