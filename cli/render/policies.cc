#include "cli/render/policies.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/render/json.h"
#include "cli/render/table.h"
#include "cli/render/text.h"
#include "sidecar/policy/policy.h"

namespace dkv::cli {
namespace {

std::string value_text(Json const& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_object()) return one_line(value.value("name", std::string()));
    if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
    return value.is_number_float() ? fmt::format("{:g}", value.get<double>()) : value.dump();
}

constexpr std::size_t kMargin = 4;

}  // namespace

bool uses(std::string_view policy, Parameter const& parameter) {
    auto const known = policies();
    auto const entry = std::ranges::find(known, policy, &PolicyEntry::name);
    return entry == known.end() || entry->traits.has(parameter.trait);
}

std::string policy_brief(wire::PolicyT const* policy) {
    if (policy == nullptr) return "-";
    auto name = one_line(policy->name);
    if (name == "fullkv") return name;
    if (policy->ratio) return fmt::format("{} {}", name, human_share(*policy->ratio));
    if (policy->bytes) return fmt::format("{} {}", name, human_bytes(*policy->bytes));
    if (policy->keep_mass) return fmt::format("{} mass {:g}", name, *policy->keep_mass);
    return policy->capacity ? fmt::format("{} {}", name, *policy->capacity) : name;
}

std::string policy_line(wire::PolicyT const* policy) {
    if (policy == nullptr) return "-";
    Json const json = to_json(*policy);
    std::string line = one_line(policy->name);
    for (Parameter const& row : parameters()) {
        auto const found = json.find(std::string(row.name));
        if (found != json.end() && uses(policy->name, row))
            line += fmt::format(" {}={}", row.name, value_text(*found));
    }
    return line;
}

std::string policy_list_text(wire::PolicyListT const& policies, Style const& style) {
    std::string out;
    std::size_t width = 0;
    for (auto const& policy : policies.policies)
        width = std::max(width, display_width(one_line(policy->name)));
    for (auto const& policy : policies.policies) {
        auto const name = one_line(policy->name);
        bool const is_default =
            policies.default_policy && policies.default_policy->name == policy->name;
        out += (is_default ? "* " : "  ") + toned(Tone::Bold, name, style) +
               std::string(width - display_width(name) + 2, ' ');
        out += wrapped(one_line(policy->summary), style.columns - width - kMargin, width + kMargin);
        auto const line = policy->policy ? policy_line(policy->policy.get()) : std::string();
        if (auto const blank = line.find(' '); blank != std::string::npos)
            out += "\n" + std::string(width + kMargin, ' ') +
                   toned(Tone::Dim,
                         wrapped(line.substr(blank + 1), style.columns - width - kMargin,
                                 width + kMargin),
                         style);
        out += "\n";
    }
    if (policies.default_policy)
        out += fmt::format(
            "\n{}\n", wrapped("* new sessions get " + policy_line(policies.default_policy.get()) +
                                  (policies.default_source.empty()
                                       ? std::string()
                                       : " (from: " + one_line(policies.default_source) + ")"),
                              style.columns - 2, 2));
    else
        out += fmt::format("\n  {}\n", wrapped("These are the defaults of this dkv: " +
                                                   one_line(policies.default_source) + ".",
                                               style.columns - 2, 2));
    out += "  dkv policy show NAME explains every parameter\n";
    return out;
}

std::string policy_text(wire::PolicyInfoT const& policy, bool is_default, Style const& style) {
    constexpr std::size_t kIndent = 12;
    std::size_t const width = style.columns - kIndent;
    std::string out = toned(Tone::Bold, one_line(policy.name), style) +
                      (is_default ? " (what new sessions get)" : "") + "\n  " +
                      wrapped(one_line(policy.summary), style.columns - 2, 2) + "\n";
    Json const json = policy.policy ? to_json(*policy.policy) : Json::object();
    for (Parameter const& row : parameters()) {
        if (!uses(policy.name, row)) continue;
        auto const value = json.find(std::string(row.name));
        out += fmt::format("\n  {}\n", toned(Tone::Bold, row.flag(), style));
        out += fmt::format("    {}\n", wrapped(row.what, style.columns - 4, 4));
        out += fmt::format("    range   {}\n", wrapped(row.allowed(), width, kIndent));
        out += fmt::format("    value   {}\n",
                           value == json.end() ? std::string("-") : value_text(*value));
        out += fmt::format("    source  {}\n",
                           toned(Tone::Dim, wrapped(row.source, width, kIndent), style));
    }
    if (policy.name == "fullkv") out += "\n  It has no parameters.\n";
    return out;
}

std::string certificates_text(std::vector<Certificate> const& certificates, Style const& style) {
    std::string out;
    for (Certificate const& one : certificates) {
        auto const words =
            one.capacity == 0
                ? fmt::format("{}: none at risk {:g}: keep it whole", one.model, one.epsilon)
                : fmt::format("{}: at {} tokens {}", one.model, one.capacity, one.promise());
        out +=
            "\n  " + toned(Tone::Bold, one_line(one.name), style) + "\n    " +
            wrapped(one_line(fmt::format("{} ({})", words, one.requests())), style.columns - 4, 4) +
            "\n";
    }
    return out;
}

std::string policy_reach_text(wire::InstanceListT const& list,
                              std::uint64_t instance,
                              Style const& style) {
    Table table(
        {{"INSTANCE"}, {"PID", Column::Align::Right}, {"ENGINE"}, {"NEXT SESSION"}, {"FROM"}});
    std::size_t own = 0;
    for (auto const& item : list.instances) {
        if (instance != 0 && item->instance != instance) continue;
        if (!item->alive) continue;
        bool const kept_own = instance == 0 && item->policy_source == "instance";
        own += kept_own ? 1 : 0;
        table.add({hex_id(item->instance), std::to_string(item->pid),
                   shortened(one_line(item->engine), 24, style), policy_brief(item->policy.get()),
                   one_line(item->policy_source)});
    }
    if (table.empty()) return "No engine is attached; the next one gets it.\n";
    std::string out = "\n" + table.text(style);
    if (own > 0)
        out += fmt::format(
            "\n{} {} a setting of its own: dkv policy reset --instance ID removes it.\n",
            counted(own, "engine"), own == 1 ? "keeps" : "keep");
    return out;
}

}  // namespace dkv::cli
