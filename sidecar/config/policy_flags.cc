#include "sidecar/config/policy_flags.h"

#include <map>

#include <CLI/CLI.hpp>

namespace dkv {
namespace {

constexpr char const* kGroup = "Policy";

template <class T>
void add_number(CLI::App& app, char const* flag, std::optional<T>& field, char const* help) {
    app.add_option(flag, field, help)->group(kGroup);
}

template <class T>
void add_word(CLI::App& app,
              char const* flag,
              std::optional<T>& field,
              std::map<std::string, T> const& words,
              char const* help) {
    app.add_option_function<std::string>(
           flag, [&field, words](std::string const& word) { field = words.at(word); }, help)
        ->check(CLI::IsMember(words))
        ->group(kGroup);
}

}  // namespace

void add_policy_flags(CLI::App& app, PolicyRequest& request) {
    add_number(app, "--capacity", request.capacity,
               "mean tokens kept per layer and KV head, window included");
    add_number(app, "--window", request.window,
               "last prompt tokens: always kept, their queries score the rest");
    add_number(app, "--kernel", request.kernel, "pooling kernel, odd");
    add_word<Pool>(app, "--pool", request.pool, {{"max", Pool::Max}, {"avg", Pool::Avg}},
                   "pooling of the scores");
    add_word<GroupReduce>(
        app, "--reduce", request.reduce,
        {{"mean", GroupReduce::Mean}, {"max", GroupReduce::Max}, {"sum", GroupReduce::Sum}},
        "how the query heads of a KV head become one score");
    add_number(app, "--r-max", request.r_max,
               "most that a layer may stage, as a multiple of capacity - window");
    add_number(app, "--r-min", request.r_min,
               "least that a layer keeps, as a share of capacity - window");
    add_number(app, "--update-interval", request.update_interval, "layers between two re-cuts");
    add_number(app, "--sinks", request.sinks, "first tokens that streamingllm keeps");
    add_number(app, "--beta", request.beta, "pyramidkv: mean budget over the last layer's");
}

}  // namespace dkv
