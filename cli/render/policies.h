// Policies and their parameters, in words.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// What one parameter is, for people who have not read the papers.
struct ParameterWords {
    std::string_view name;  ///< As JSON and the wire spell it: "r_max".
    std::string_view flag;  ///< "--r-max"
    std::string_view what;
    std::string_view range;
    std::string_view source;    ///< Paper, and where in it.
    std::string_view policies;  ///< Which policies use it, each name followed by a space.
};

std::span<ParameterWords const> parameter_words();

/// Whether `policy` looks at `parameter`; a policy unknown here looks at all of them.
bool uses(std::string_view policy, ParameterWords const& parameter);

/// "dynamickv 512", "snapkv 25.0 %", or only the name where no size is known. nullptr: "-".
std::string policy_brief(wire::PolicyT const* policy);
/// "dynamickv capacity=512 window=32 …": the parameters that the policy uses. A line breaks between
/// them, not in them.
std::string policy_line(wire::PolicyT const* policy);

std::string policy_list_text(wire::PolicyListT const& policies, Style const& style);
std::string policy_text(wire::PolicyInfoT const& policy, bool is_default, Style const& style);

/// The instances after `dkv policy set`: whom the setting reached. instance 0: it was for all.
std::string policy_reach_text(wire::InstanceListT const& list,
                              std::uint64_t instance,
                              Style const&);

}  // namespace dkv::cli
