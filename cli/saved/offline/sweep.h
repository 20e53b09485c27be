// A grid of policies and budgets over one saved prompt: each layer is read and scored once.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cli/saved/formats/saved_cache.h"
#include "cli/saved/offline/progress.h"
#include "kernels/backend.h"
#include "sidecar/policy/params.h"

namespace dkv::offline {

/// One point of the grid over one prompt.
struct SweepRow {
    PolicyParams params;  ///< As used, with a capacity.
    std::string error;  ///< Not empty: this point cannot be had of this file; nothing else is set.
    std::vector<std::uint32_t> lengths;  ///< [layers, kv_heads]
    /// [layers] damage.h's number, whose mean over the layers it is; empty: the file's model has no
    /// profile, or nothing of the attention is known.
    std::vector<double> damage;
    std::vector<float> mass_kept;  ///< [layers]; empty: unknown.
    /// [layers] relative L2 error of the attention's output: ‖o' - o‖ / ‖o‖ over the stored
    /// window's queries and all query heads, o over the whole cache, o' over what is kept;
    /// empty: the file has no queries.
    std::vector<double> error_l2;
    std::uint64_t bytes_kept = 0;  ///< K and V.
    std::uint64_t bytes_full = 0;
};

/// In the order of `points`. `with_error` false leaves error_l2 out, which costs most. The damage
/// is judged by the profile of the file's model, or else by the first that a point has.
///
/// Errors: those of the file and the backend, and interrupted(). What is wrong with one point
/// stands in its row.
Result<std::vector<SweepRow>> sweep(Backend& backend,
                                    SavedCache const& file,
                                    std::span<PolicyRequest const> points,
                                    bool with_error,
                                    Progress const& progress = {});

}  // namespace dkv::offline
