// What the readings mean, and what to do about it. Pure.
#pragma once

#include <string>
#include <vector>

#include "cli/doctor/readings.h"

namespace dkv::cli::doctor {

enum class Level { Ok, Warn, Fail };

struct Finding {
    std::string name;
    Level level = Level::Ok;
    std::string found;   ///< The fact, in a phrase.
    std::string means;   ///< What it does to dkv.
    std::string advice;  ///< What to do; "" where nothing is to be done.
};

/// One finding per subject, always the same subjects in the same order.
std::vector<Finding> judge(Readings const& readings);

/// Fail when anything failed, else Warn when anything warned.
Level worst(std::vector<Finding> const& findings);

}  // namespace dkv::cli::doctor
