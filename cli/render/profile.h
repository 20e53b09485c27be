// What a calibrated profile says, and the budgets it makes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "sidecar/config/profile_file.h"

namespace dkv::cli {

/// What a policy with this profile keeps of one prompt.
struct ProfileBudgets {
    std::uint32_t capacity = 0;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t window = 0;
    std::vector<std::vector<std::uint32_t>> lengths;  ///< [layers][kv_heads] rows, window included.
};

/// Facts, and a map of layers and heads: what each gets of the budget beside the one that gets
/// most. `bars`: a line per layer as well.
std::string profile_text(ProfileFile const& file,
                         std::optional<ProfileBudgets> const& budgets,
                         bool bars,
                         Style const& style);

Json to_json(ProfileFile const& file, std::optional<ProfileBudgets> const& budgets);

}  // namespace dkv::cli
