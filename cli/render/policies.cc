#include "cli/render/policies.h"

#include <algorithm>
#include <array>

#include <fmt/format.h>

#include "cli/render/json.h"
#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

constexpr std::string_view kScored = "auto h2o snapkv pyramidkv dynamickv ";
constexpr std::string_view kPooled = "auto snapkv pyramidkv dynamickv ";
constexpr std::string_view kDynamic = "dynamickv ";
constexpr std::string_view kProfiled = "auto dynamickv ";
constexpr std::string_view kBudgeted =
    "auto streamingllm h2o snapkv pyramidkv dynamickv knorm keydiff ";

constexpr std::array kWords{
    ParameterWords{
        "capacity", "--capacity",
        "Tokens kept per layer and KV head, on average over the layers, window included. "
        "A prompt that is no longer is kept whole.",
        "at least the window",
        "the cache budget of every paper; DynamicKV's main results use 64 to 1024", kBudgeted},
    ParameterWords{
        "window", "--window",
        "The last tokens of the prompt. They are always kept, and their queries decide "
        "which of the others matter, so the window should cover the question.",
        "1 to 1024, at most capacity",
        "SnapKV, observation window; DynamicKV publishes 8, dkv's default is larger since "
        "small models need it",
        kBudgeted},
    ParameterWords{"kernel", "--kernel",
                   "Width of the smoothing along tokens: neighbours of an important token are kept "
                   "with it. 1 turns it off.",
                   "odd, 1 to 63",
                   "SnapKV, clustering by pooling; DynamicKV uses 7, and 15 did best on SmolLM2",
                   kPooled},
    ParameterWords{
        "pool", "--pool",
        "How the smoothing works: max spreads a peak to its neighbours, avg flattens it.",
        "max or avg",
        "SnapKV, clustering by pooling; DynamicKV takes avg for Llama-3 and InternLM, max "
        "for Mistral and Qwen2",
        kPooled},
    ParameterWords{"reduce", "--reduce",
                   "How the scores of the query heads that share one KV head become one score.",
                   "mean, max or sum",
                   "dkv's own: the released codes store every query head instead", kScored},
    ParameterWords{
        "r_max", "--r-max",
        "Most that a layer may hold while later layers are still to come, as a multiple of "
        "capacity - window. Larger finds better budgets and needs more memory in between.",
        "1 or more", "DynamicKV, the per-layer maximum; published with 10 (5 for Qwen2-7B)",
        kDynamic},
    ParameterWords{"r_min", "--r-min",
                   "Least that a layer keeps, as a share of capacity - window. It protects layers "
                   "whose attention looks weak.",
                   "0 to 1", "dkv's own: the paper's budgets may leave a layer with nothing",
                   kDynamic},
    ParameterWords{
        "update_interval", "--update-interval",
        "After how many layers the budgets of all layers so far are cut anew. Smaller holds "
        "less memory during prefill and costs a little time.",
        "1 or more", "DynamicKV, the progressive update every m layers; published with 4",
        kDynamic},
    ParameterWords{"sinks", "--sinks",
                   "The first tokens of the prompt, which models lean on whatever they say.",
                   "0 to capacity - window", "StreamingLLM, attention sinks; published with 4",
                   "streamingllm "},
    ParameterWords{
        "beta", "--beta",
        "Steepness of the pyramid: the last layer gets 1/beta of the mean budget, the first "
        "layer what is left over.",
        "1 or more", "PyramidKV, the arithmetic sequence of budgets; published with 20",
        "pyramidkv "},
    ParameterWords{
        "granularity", "--granularity",
        "What shares the budget: the layers (the heads of a layer alike), the heads inside each "
        "layer (the layers alike), or all heads of all layers. With keep-mass: whether the heads "
        "of a layer are alike, or each keeps the share by itself.",
        "layer, head or layer-head",
        "DynamicKV shares between layers, Ada-KV between the heads of a layer; layer-head is "
        "dkv's own",
        kDynamic},
    ParameterWords{
        "score_norm", "--score-norm",
        "How layers are made comparable before the largest scores of all are counted: not at all, "
        "each divided by its sum, or that after its first tokens (sinks, and what the smoothing "
        "spreads them to) were set to 0. Which tokens a head prefers does not change.",
        "none, layer or layer-nosink", "dkv's own: the paper compares raw attention", kDynamic},
    ParameterWords{
        "profile", "--profile",
        "What `dkv calibrate` measured of this model: which layers and heads matter. Budgets then "
        "follow from it and are known before the first layer, so nothing is staged; granularity, "
        "score-norm, r-max, r-min and update-interval say nothing then. It brings the kernel that "
        "it was measured with.",
        "a file for the engine's model: dkv profile show FILE",
        "dkv's own; HeadKV, EvolKV and BaKlaVa measure importance in other ways", kProfiled},
    ParameterWords{"profile_alpha", "--profile-alpha",
                   "How far budgets follow the profile, instead of its own: they are in "
                   "proportion to weight^alpha. 0 makes all alike.",
                   "0 to 8, with a profile", "dkv's own", kProfiled},
    ParameterWords{"profile_floor", "--profile-floor",
                   "Least that a head keeps whatever its weight, instead of the profile's own, as "
                   "a share of capacity - window.",
                   "0 to 1, with a profile", "dkv's own", kProfiled},
    ParameterWords{"query_norm", "--query-norm",
                   "Whether a token's score is divided by the number of queries that can see it; "
                   "else early tokens, seen by more, score higher.",
                   "on or off", "kvpress divides; H2O as published does not", "h2o "},
    ParameterWords{"ratio", "--ratio",
                   "Instead of a capacity: the share of the prompt's tokens to keep, window "
                   "included, but never less than the window.",
                   "above 0, at most 1", "kvpress's way of giving a size", kBudgeted},
    ParameterWords{"bytes", "--bytes",
                   "Instead of a capacity: the most bytes that the kept keys and values may take.",
                   "at least what the window takes; 512MiB", "dkv's own", kBudgeted},
    ParameterWords{"keep_mass", "--keep-mass",
                   "Instead of a capacity: in every layer, the fewest tokens that hold this share "
                   "of the window's attention, the window's own share counted. Nothing is staged. "
                   "A profile says nothing then.",
                   "above 0, at most 1", "dkv's own", kScored},
    ParameterWords{"preset", "--preset",
                   "The settings of a publication for the engine's family of models, unchanged for "
                   "ever. What else is given goes over them. paper: window 8, kernel 7, r-max 10 "
                   "(Qwen2 5), r-min 0, update-interval 4, pool avg (Mistral, Qwen2 max).",
                   "paper", "DynamicKV, experimental settings", kScored},
};

std::string value_text(Json const& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_object()) return one_line(value.value("name", std::string()));
    if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
    return value.is_number_float() ? fmt::format("{:g}", value.get<double>()) : value.dump();
}

constexpr std::size_t kMargin = 4;

}  // namespace

std::span<ParameterWords const> parameter_words() {
    return kWords;
}

bool uses(std::string_view policy, ParameterWords const& parameter) {
    if (policy == "fullkv") return false;
    std::string const word = std::string(policy) + " ";
    bool const known = kBudgeted.find(word) != std::string_view::npos;
    return !known || parameter.policies.find(word) != std::string_view::npos;
}

std::string policy_brief(wire::PolicyT const* policy) {
    if (policy == nullptr) return "-";
    auto const name = one_line(policy->name);
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
    for (ParameterWords const& words : kWords) {
        auto const found = json.find(std::string(words.name));
        if (found != json.end() && uses(policy->name, words))
            line += fmt::format(" {}={}", words.name, value_text(*found));
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
    for (ParameterWords const& words : kWords) {
        if (!uses(policy.name, words)) continue;
        auto const value = json.find(std::string(words.name));
        out += fmt::format("\n  {}\n", toned(Tone::Bold, words.flag, style));
        out += fmt::format("    {}\n", wrapped(words.what, style.columns - 4, 4));
        out += fmt::format("    range   {}\n", wrapped(words.range, width, kIndent));
        out += fmt::format("    value   {}\n",
                           value == json.end() ? std::string("-") : value_text(*value));
        out += fmt::format("    source  {}\n",
                           toned(Tone::Dim, wrapped(words.source, width, kIndent), style));
    }
    if (policy.name == "fullkv") out += "\n  It has no parameters.\n";
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
