// What a policy would keep of a prompt.
#pragma once

#include <string>

#include "cli/render/json.h"
#include "cli/render/style.h"
#include "cli/saved/models.h"
#include "cli/saved/offline/estimate.h"

namespace dkv::cli {

struct Plan {
    ModelGeometry model;
    std::uint32_t prompt_tokens = 0;
    offline::Estimate estimate;
};

std::string plan_text(Plan const& plan, Style const& style);
Json to_json(Plan const& plan);

}  // namespace dkv::cli
