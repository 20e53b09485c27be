#include <algorithm>

#include <fmt/format.h>

#include "cli/certificates.h"
#include "cli/commands/all.h"
#include "cli/ids.h"
#include "cli/known_policies.h"
#include "cli/render/json.h"
#include "cli/render/policies.h"
#include "cli/render/text.h"
#include "cli/wire_policy.h"
#include "sidecar/config/policy_flags.h"

namespace dkv::cli {
namespace {

struct PolicyOptions {
    std::string show_name;
    PolicyRequest request;
    bool to_default = false;
    std::string instance;
    bool all = false;
    std::optional<double> risk;
    std::string show_profile;  ///< Its certificates are chosen from.
};

bool has_parameters(PolicyRequest const& r) {
    bool any = !r.preset.empty() || r.profile;
    each_value([&any](char const*, auto const& field) { any = any || field; }, r);
    return any;
}

Result<Output> list(Context const& context) {
    auto const policies = DKV_TRY(known_policies(context));
    return Output{policy_list_text(policies, context.style()), to_json(policies)};
}

std::string promise_text(Certificate const& one, Style const& style) {
    return wrapped(fmt::format("{}: {} ({}).", one.name, one.promise(), one.requests()),
                   style.columns, 0) +
           "\n";
}

/// What --risk takes: also for dkv.hf.Cache and dkv eval, which ask this command.
Result<Output> show_certificate(Context const& context, PolicyOptions const& options) {
    auto const one =
        DKV_TRY(choose_certificate(options.show_profile, options.show_name, *options.risk));
    std::string flags = fmt::format("--capacity {}", one.capacity);
    Json json = Json::object();
    for (auto const& [flag, value] : one.flags) {
        flags += fmt::format(" --{} {}", flag, value);
        json[flag] = value;
    }
    return Output{promise_text(one, context.style()) + one.policy + " " + flags + "\n",
                  {{"name", one.name},
                   {"policy", one.policy},
                   {"capacity", one.capacity},
                   {"flags", json},
                   {"weights", one.certified.weights},
                   {"tokens", {one.certified.tokens_min, one.certified.tokens_max}},
                   {"promise", one.promise()},
                   {"requests", one.requests()}}};
}

/// How a parameter is explained under --json, beside its value.
Json explained(wire::PolicyInfoT const& policy, std::vector<Certificate> const& certificates) {
    Json json = to_json(policy);
    json["certificates"] = Json::array();
    for (Certificate const& one : certificates)
        json["certificates"].push_back({{"model", one.model},
                                        {"name", one.name},
                                        {"capacity", one.capacity},
                                        {"tau", one.tau},
                                        {"epsilon", one.epsilon},
                                        {"delta", one.delta},
                                        {"requests", one.requests()}});
    json["explained"] = Json::array();
    for (Parameter const& row : parameters())
        if (uses(policy.name, row))
            json["explained"].push_back({{"name", row.name},
                                         {"flag", row.flag()},
                                         {"what", row.what},
                                         {"range", row.allowed()},
                                         {"source", row.source}});
    return json;
}

Result<Output> show(Context const& context, std::string const& wanted) {
    auto const policies = DKV_TRY(known_policies(context));
    if (wanted.empty() && !policies.default_policy)
        return Error{ErrorCode::Unavailable,
                     policies.default_source + "; dkv policy show NAME needs no sidecar"};
    std::string const in_force = policies.default_policy ? policies.default_policy->name : "";
    std::string const name = wanted.empty() ? in_force : wanted;
    std::string known;
    for (auto const& policy : policies.policies) {
        if (policy->name == name) {
            wire::PolicyInfoT shown = *policy;
            // What is in force may differ from the policy's own defaults: show what will be used.
            if (name == in_force)
                shown.policy = std::make_unique<wire::PolicyT>(*policies.default_policy);
            auto const certificates = known_certificates(name);
            return Output{policy_text(shown, name == in_force, context.style()) +
                              certificates_text(certificates, context.style()),
                          explained(shown, certificates)};
        }
        known += (known.empty() ? "" : ", ") + policy->name;
    }
    return Error{ErrorCode::NotFound, "no policy '" + name + "'; there are " + known};
}

/// Wrong usage that CLI11 cannot see; thrown while parsing so that it ends like any other.
void check_set(PolicyOptions const& options) {
    if (options.to_default && !options.request.name.empty())
        throw CLI::ValidationError("--default and NAME exclude each other");
    if (options.to_default && (has_parameters(options.request) || options.risk))
        throw CLI::ValidationError("--default takes no parameters");
    if (!options.to_default && options.request.name.empty())
        throw CLI::ValidationError("NAME is required, or --default");
}

Result<Output> set(Context const& context, PolicyOptions const& options, bool to_default) {
    std::uint64_t const instance =
        options.instance.empty() ? 0 : DKV_TRY(parse_id(options.instance));
    auto const controller = DKV_TRY(context.connect());
    auto const policy = to_wire(options.request);
    DKV_TRY(controller->set_policy(instance, to_default ? nullptr : &policy));
    auto const list = DKV_TRY(controller->instances());

    std::string const what =
        to_default ? std::string("The sidecar's default policy") : policy_line(&policy);
    std::string const whom = instance == 0 ? std::string("every engine, present and future")
                                           : "engine " + hex_id(instance);
    Json reached = Json::array();
    for (auto const& item : list.instances)
        if (item->alive &&
            (instance == 0 ? item->policy_source != "instance" : item->instance == instance))
            reached.push_back({{"instance", hex_id(item->instance)},
                               {"pid", item->pid},
                               {"policy", to_json(item->policy)},
                               {"policy_source", item->policy_source}});
    return Output{fmt::format("{} holds from now on for new sessions of {}.\n{}", what, whom,
                              policy_reach_text(list, instance, context.style())),
                  {{"instance", instance == 0 ? Json("all") : Json(hex_id(instance))},
                   {"policy", to_default ? Json() : to_json(policy)},
                   {"reached", reached}}};
}

void add_target(CLI::App& app, PolicyOptions& options) {
    auto* const one = app.add_option("--instance", options.instance, "only this engine")
                          ->check(id_validator())
                          ->type_name("ID");
    app.add_flag("--all", options.all, "every engine, present and future; so without --instance")
        ->excludes(one);
}

}  // namespace

Run setup_policy(CLI::App& app, Context const& context) {
    auto options = std::make_shared<PolicyOptions>();
    app.require_subcommand(1);
    CLI::App* const list_app = app.add_subcommand("list", "every policy with its parameters");
    CLI::App* const show_app =
        app.add_subcommand("show", "explain a policy's parameters; without NAME, the one in force");
    auto* const shown = show_app->add_option("NAME", options->show_name, "a policy");
    auto* const chosen_from = show_app
                                  ->add_option("--profile", options->show_profile,
                                               "with --risk: the profile that holds certificates")
                                  ->type_name("FILE");
    add_risk_flag(*show_app, options->risk);
    show_app->get_option("--risk")->needs(shown);
    chosen_from->needs("--risk");
    CLI::App* const set_app =
        app.add_subcommand("set", "change what the next session of running engines gets");
    set_app->add_option("NAME", options->request.name, "a policy");
    set_app->add_flag("--default", options->to_default, "back to the sidecar's default");
    add_target(*set_app, *options);
    add_policy_flags(*set_app, options->request);
    add_risk_flag(*set_app, options->risk);
    set_app->callback([options] { check_set(*options); });
    CLI::App* const reset_app = app.add_subcommand("reset", "the same as set --default");
    add_target(*reset_app, *options);

    return [=, &context]() -> Result<Output> {
        if (list_app->parsed()) return list(context);
        if (show_app->parsed() && options->risk) return show_certificate(context, *options);
        if (show_app->parsed()) return show(context, options->show_name);
        std::string promised;
        if (options->risk) {
            auto const taken =
                DKV_TRY(take_certificate(*set_app, options->request.name, *options->risk));
            promised = promise_text(taken, context.style());
        }
        auto output = DKV_TRY(set(context, *options, options->to_default || reset_app->parsed()));
        output.text += promised;
        return output;
    };
}

}  // namespace dkv::cli
