// One prompt's cache: as a line among others, and in detail.
#pragma once

#include <string>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// Rows kept per KV head, over all layers and heads. Nothing is known: all 0.
struct KeptTokens {
    std::uint32_t min = 0;
    double mean = 0;
    std::uint32_t max = 0;
};
KeptTokens kept_tokens(wire::SessionInfoT const& session);
/// Mean share of the window's attention on kept tokens; NaN when it was not measured.
double mass_kept_mean(wire::SessionInfoT const& session);

std::string sessions_text(wire::SessionListT const& list, Style const& style);
/// Everything about one, with bars of tokens and mass per layer.
std::string session_text(wire::SessionInfoT const& session, Style const& style);

}  // namespace dkv::cli
