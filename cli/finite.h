// A check of numbers that CLI11's own checks do not make.
#pragma once

#include <cmath>
#include <cstdlib>
#include <string>

#include <CLI/CLI.hpp>

namespace dkv::cli {

/// NaN is neither below nor above a bound, so CLI::Range lets it through.
inline CLI::Validator finite() {
    return {[](std::string const& text) {
                bool const good = std::isfinite(std::strtod(text.c_str(), nullptr));
                return good ? std::string() : text + " is not a finite number";
            },
            ""};
}

}  // namespace dkv::cli
