// A published code's form over a whole prompt, layer by layer: from Q and K to the positions kept.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "cli/saved/reference/attention_ref.h"
#include "protocol/base/geometry.h"
#include "protocol/base/result.h"
#include "sidecar/policy/params.h"

namespace dkv::reference {

/// The positions that one head stores, in stored order; one can stand twice.
using HeadList = std::vector<std::int32_t>;

class Form {
public:
    virtual ~Form() = default;

    /// Rows of queries that each layer needs.
    virtual std::uint32_t queries_wanted() const noexcept = 0;

    /// Errors: those of attention_sums, and where the published code raises.
    virtual Result<void> add_layer(AttentionInput const& layer) = 0;

    /// After the last layer. [layers][heads]: query heads where the code stores expanded rows, else
    /// KV heads.
    virtual std::vector<std::vector<HeadList>> const& stored() const noexcept = 0;
};

/// `name` is one of reference_forms(). Of params they take capacity, window, kernel, pool, r_max,
/// update_interval and beta; kvpress's ratio is what leaves `capacity` tokens.
///
/// Errors: NotFound for another name; InvalidArgument where the published code cannot be set up so
/// (a single layer of pyramidkv-ref, a fractional beta, capacity not above the window).
Result<std::unique_ptr<Form>> make_form(std::string_view name,
                                        PolicyParams const& params,
                                        Geometry const& geometry,
                                        std::uint32_t prompt_tokens);

}  // namespace dkv::reference
