// One factory per policy, for the registry. The prompt has more than `capacity` tokens.
#pragma once

#include <memory>

#include "sidecar/policy/policy.h"

namespace dkv {

std::unique_ptr<Policy> make_auto(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_fullkv(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_streamingllm(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_h2o(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_snapkv(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_pyramidkv(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_dynamickv(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_knorm(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_keydiff(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_reuse(PolicyParams const& params, PromptShape const& shape);
std::unique_ptr<Policy> make_scores(PolicyParams const& params, PromptShape const& shape);

/// dynamickv's budgets, of tokens that are ranked by attention or by what is given.
std::unique_ptr<Policy> make_by_counts(PolicyParams const& params,
                                       PromptShape const& shape,
                                       Ranking ranking);

/// One threshold for all heads of all layers, over scores that a profile's surrogate foresees;
/// with Ranking::Joined half of each budget is the profile's.
std::unique_ptr<Policy> make_foreseen(PolicyParams const& params,
                                      PromptShape const& shape,
                                      Ranking ranking);

}  // namespace dkv
