// Two policies over one saved prompt, as text or JSON.
#pragma once

#include <string>

#include "cli/render/json.h"
#include "cli/render/style.h"
#include "cli/saved/offline/diff.h"

namespace dkv::cli {

std::string diff_text(offline::Diff const& diff, Style const& style);
Json to_json(offline::Diff const& diff);

}  // namespace dkv::cli
