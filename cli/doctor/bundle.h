// What a bug report needs of a machine and its sidecar, without secrets.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace dkv::cli::doctor {

using Variables = std::vector<std::pair<std::string, std::string>>;

/// Of this process.
Variables environment_variables();

/// Takes out of a bundle what a reader should not get: values of variables whose names speak of
/// secrets, wherever they stand; passwords in URLs; home folders.
class Scrubber {
public:
    explicit Scrubber(Variables const& variables);

    std::string clean(std::string text) const;
    /// Every string in it, keys included.
    nlohmann::ordered_json clean(nlohmann::ordered_json const& json) const;

    /// Whether a variable of this name holds a secret.
    static bool is_secret(std::string const& name);

private:
    std::vector<std::string> secrets_;  ///< The longest first.
    std::vector<std::string> homes_;
};

/// The variables that bear on dkv and its engines; secret values are replaced.
nlohmann::ordered_json variables_json(Variables const& variables);
/// Kernel, distribution, time.
nlohmann::ordered_json system_json();

}  // namespace dkv::cli::doctor
