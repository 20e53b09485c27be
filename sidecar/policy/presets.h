// Settings as published, under a name, unchanged for ever.
#pragma once

#include <span>
#include <string_view>

#include "sidecar/policy/params.h"

namespace dkv {

/// A publication's settings for one family of models.
struct Preset {
    std::string_view name;    ///< "paper"
    std::string_view family;  ///< In the model's name, lower case; empty: any other.
    PolicyRequest settings;
};

/// DynamicKV (Zhou et al. 2025, §4.1 and the released configurations). The first line that fits a
/// model counts.
std::span<Preset const> presets();

/// The request with the preset's settings where it has none of its own.
///
/// Errors: NotFound for an unknown preset; the message lists the known ones.
Result<PolicyRequest> with_preset(PolicyRequest const& request, std::string_view model);

}  // namespace dkv
