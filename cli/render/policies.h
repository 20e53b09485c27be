// Policies and their parameters, in words.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/certificates.h"
#include "cli/render/style.h"
#include "protocol/policy/parameters.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// Whether `policy` looks at `parameter`; a policy unknown here looks at all of them.
bool uses(std::string_view policy, Parameter const& parameter);

/// "dynamickv 512", "snapkv 25.0 %", or only the name where no size is known. nullptr: "-".
std::string policy_brief(wire::PolicyT const* policy);
/// "dynamickv capacity=512 window=32 …": the parameters that the policy uses. A line breaks between
/// them, not in them.
std::string policy_line(wire::PolicyT const* policy);

std::string policy_list_text(wire::PolicyListT const& policies, Style const& style);
std::string policy_text(wire::PolicyInfoT const& policy, bool is_default, Style const& style);
/// What `dkv certify` stored of a policy; empty without certificates.
std::string certificates_text(std::vector<Certificate> const& certificates, Style const& style);

/// The instances after `dkv policy set`: whom the setting reached. instance 0: it was for all.
std::string policy_reach_text(wire::InstanceListT const& list,
                              std::uint64_t instance,
                              Style const&);

}  // namespace dkv::cli
