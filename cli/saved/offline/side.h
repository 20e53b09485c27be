// One policy over one saved prompt: which positions it keeps. Native policies run the sidecar's own
// plan, reference forms the published code's arithmetic.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/saved/formats/saved_cache.h"
#include "kernels/backend.h"
#include "sidecar/policy/params.h"

namespace dkv::offline {

struct Side {
    std::string name;
    PolicyParams params;  ///< As used, with a capacity; a reference form's are its native twin's.
    /// [layers][heads] positions as stored: ascending per KV head, or by falling score per query
    /// head where the published code stores expanded rows.
    std::vector<std::vector<std::vector<std::int32_t>>> kept;
};

/// Whether `name` is one of reference_forms().
bool is_reference(std::string_view name) noexcept;

/// `name` instead of the request's own: a policy or a reference form.
///
/// Errors: those of resolve() and sized(); NotFound for an unknown name; InvalidArgument when the
/// file lacks the queries that the policy needs (the message says how many), keep_mass for a
/// reference form, or the published code raises; Unsupported for a reference form on logits with a
/// scale or soft cap of their own.
Result<Side> run_side(Backend& backend,
                      SavedCache const& file,
                      std::string const& name,
                      PolicyRequest const& request);

/// The last `count` queries of a layer that has as many.
RowsView last_queries(SavedLayer const& layer, std::uint32_t count);

}  // namespace dkv::offline
