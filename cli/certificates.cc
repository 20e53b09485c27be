#include "cli/certificates.h"

#include <algorithm>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cli/finite.h"
#include "cli/saved/offline/profiles.h"
#include "protocol/policy/parameters.h"

namespace dkv::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string text_of(Json const& value) {
    return value.is_string() ? value.get<std::string>() : value.dump();
}

/// Throws what the library throws of a field that is missing or of another type.
Certificate certificate_from(std::string const& name, Json const& json, Json const& model) {
    Certificate made;
    made.name = name;
    made.model = model.value("name", "");
    made.capacity = json.at("capacity").get<std::uint32_t>();
    made.tau = json.at("tau").get<double>();
    made.epsilon = json.at("epsilon").get<double>();
    made.delta = json.at("delta").get<double>();
    made.tasks = json.at("tasks").get<std::string>();
    made.certified = {.name = name,
                      .weights = model.value("weights", ""),
                      .tokens_min = json.at("tokens").at(0).get<std::uint32_t>(),
                      .tokens_max = json.at("tokens").at(1).get<std::uint32_t>()};
    for (auto const& [key, value] : json.at("flags").items()) {
        if (key == "policy") {
            made.policy = value.get<std::string>();
            continue;
        }
        std::string flag = key;
        std::ranges::replace(flag, '_', '-');
        made.flags.emplace_back(flag, text_of(value));
    }
    return made;
}

std::string list_of(std::vector<Certificate> const& certificates) {
    std::string text;
    for (Certificate const& one : certificates)
        text +=
            fmt::format("{}{} at risk {:g} ({})", text.empty() ? "" : ", ", one.name, one.epsilon,
                        one.capacity == 0 ? std::string("none: keep it whole")
                                          : fmt::format("{} tokens", one.capacity));
    return text.empty() ? "none at all" : text;
}

/// As CLI11 does for the command line: convert, check, call back.
Result<void> give(CLI::App& app, std::string const& flag, std::string const& value) {
    auto* const option = app.get_option_no_throw("--" + flag);
    if (option == nullptr)
        return Error{ErrorCode::Unsupported,
                     "the certificate has --" + flag + ", which this dkv does not know"};
    try {
        option->add_result(value);
        option->run_callback();
    } catch (CLI::ParseError const& error) {
        return Error{ErrorCode::CorruptData,
                     fmt::format("the certificate's --{} is '{}': {}", flag, value, error.what())};
    }
    return {};
}

}  // namespace

std::string Certificate::promise() const {
    return fmt::format("at most {:g} % of such requests lose more than {:g}, with confidence {:g}",
                       100 * epsilon, tau, 1 - delta);
}

std::string Certificate::requests() const {
    return fmt::format("{}; {} to {} tokens", tasks, certified.tokens_min, certified.tokens_max);
}

Result<std::vector<Certificate>> certificates_of(ProfileFile const& file) {
    std::vector<Certificate> found;
    for (auto const& [name, figure] : file.figures.items()) {
        if (!figure.is_object() || !figure.contains("flags")) continue;
        try {
            found.push_back(certificate_from(name, figure, file.model));
        } catch (Json::exception const& error) {  // The library's way of naming a wrong field.
            return Error{ErrorCode::CorruptData,
                         fmt::format("certificate '{}' is malformed: {}", name, error.what())};
        }
    }
    return found;
}

std::vector<Certificate> known_certificates(std::string_view policy) {
    std::vector<Certificate> found;
    for (auto const& path : offline::profile_files()) {
        auto const file = read_profile_file(path);
        auto const certificates =
            file ? certificates_of(file.value()) : Result<std::vector<Certificate>>(file.error());
        if (!certificates) continue;
        for (Certificate const& one : certificates.value())
            if (one.policy == policy) found.push_back(one);
    }
    return found;
}

void add_risk_flag(CLI::App& app, std::optional<double>& risk) {
    app.add_option("--risk", risk,
                   "the size and the parameters that dkv certify stored in the profile for at most "
                   "this share of requests that lose much: 0.05")
        ->check(CLI::Range(0.0, 1.0))
        ->check(finite())
        ->needs("--profile")
        ->type_name("SHARE")
        ->group("Policy");
}

Result<Certificate> choose_certificate(std::string const& path,
                                       std::string const& policy,
                                       double risk) {
    auto const file = DKV_TRY(read_profile_file(path));
    auto certificates = DKV_TRY(certificates_of(file));
    std::erase_if(certificates, [&](Certificate const& one) { return one.policy != policy; });
    std::vector<Certificate> const all = certificates;
    std::erase_if(certificates, [&](Certificate const& one) { return one.epsilon > risk; });
    auto const alike = [&](Certificate const& one) {
        return one.flags == certificates.front().flags && one.tau == certificates.front().tau;
    };
    if (!std::ranges::all_of(certificates, alike))
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("{} has certificates of {} with other parameters or another tau: "
                                 "{}. Keep one of them in the profile",
                                 path, policy, list_of(certificates))};
    auto const best = std::ranges::max_element(certificates, {}, &Certificate::capacity);
    bool const whole = std::ranges::any_of(certificates, [&](Certificate const& one) {
        return one.capacity == 0 && one.epsilon >= best->epsilon;
    });
    if (best == certificates.end() || whole)
        return Error{
            ErrorCode::NotFound,
            fmt::format("{} has no certificate of {} at a risk of at most {:g}; it has {}. "
                        "dkv certify makes one",
                        path, policy, risk, list_of(all))};
    return *best;
}

Result<Certificate> take_certificate(CLI::App& app, std::string const& policy, double risk) {
    for (Parameter const& row : parameters())
        if (auto const* const option = app.get_option_no_throw(row.flag());
            option != nullptr && option->count() > 0 && row.name != "profile")
            return Error{ErrorCode::InvalidArgument,
                         "--risk takes " + row.flag() + " from the certificate: leave it out"};
    auto best =
        DKV_TRY(choose_certificate(app.get_option("--profile")->results().front(), policy, risk));
    for (auto const& [flag, value] : best.flags)
        DKV_TRY(give(app, flag, value));
    DKV_TRY(give(app, "capacity", std::to_string(best.capacity)));
    return best;
}

}  // namespace dkv::cli
