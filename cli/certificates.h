// Certificates, which `dkv certify` stores in profiles, and --risk, which takes a size from one.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/saved/offline/compact.h"
#include "sidecar/config/profile_file.h"
#include "sidecar/policy/params.h"

namespace CLI {
class App;
}

namespace dkv::cli {

struct Certificate {
    std::string name;  ///< Of the figure: "certified joined, question both".
    std::string model;
    std::string policy;
    /// The policy's other parameters, as flags without their dashes, and what they were.
    std::vector<std::pair<std::string, std::string>> flags;
    std::uint32_t capacity = 0;  ///< 0: none, keep the cache whole.
    double tau = 0;
    double epsilon = 0;
    double delta = 0;
    std::string tasks;
    offline::Certified certified;

    /// "at most 5 % of such requests lose more than 0.1, with confidence 0.95".
    std::string promise() const;
    /// "60 needle shown; 1024 to 1024 tokens".
    std::string requests() const;
};

/// Errors: CorruptData for a certificate that is malformed.
Result<std::vector<Certificate>> certificates_of(ProfileFile const& file);

/// Those of one policy in the profiles on this machine. Skips files that are not profiles.
std::vector<Certificate> known_certificates(std::string_view policy);

/// Adds --risk to a command that has the flags of policies.
void add_risk_flag(CLI::App& app, std::optional<double>& risk);

/// Of the certificates in the profile at `path` the one that fits `policy` and `risk`: of several,
/// which differ in their questions, the one with the largest size.
///
/// Errors: InvalidArgument where certificates differ in parameters or in tau; NotFound, naming what
/// there is, where none fits, or one says to keep the cache whole; those of read_profile_file().
Result<Certificate> choose_certificate(std::string const& path,
                                       std::string const& policy,
                                       double risk);

/// Gives `app`'s options, once they are parsed, the values of the certificate that is chosen.
///
/// Errors: those of choose_certificate(); InvalidArgument for a parameter that is given beside
/// --risk.
Result<Certificate> take_certificate(CLI::App& app, std::string const& policy, double risk);

}  // namespace dkv::cli
