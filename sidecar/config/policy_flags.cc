#include "sidecar/config/policy_flags.h"

#include <map>

#include <CLI/CLI.hpp>

#include "sidecar/config/profile_file.h"

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
    add_number(app, "--sinks", request.sinks,
               "streamingllm: first tokens kept; --score-norm layer-nosink: not counted");
    add_number(app, "--beta", request.beta, "pyramidkv: mean budget over the last layer's");
    add_word<Granularity>(app, "--granularity", request.granularity,
                          {{"layer", Granularity::Layer},
                           {"head", Granularity::Head},
                           {"layer-head", Granularity::LayerHead}},
                          "dynamickv: what shares the budget");
    add_word<ScoreNorm>(app, "--score-norm", request.score_norm,
                        {{"none", ScoreNorm::None},
                         {"layer", ScoreNorm::Layer},
                         {"layer-nosink", ScoreNorm::LayerNoSink}},
                        "dynamickv: how layers are made comparable before they are counted");
    add_word<bool>(app, "--query-norm", request.query_norm, {{"on", true}, {"off", false}},
                   "h2o: divide by the number of queries that can see a token");
    add_number(app, "--ratio", request.ratio,
               "instead of a capacity: share of the prompt's tokens to keep");
    app.add_option("--bytes", request.bytes,
                   "instead of a capacity: most bytes of K and V to keep, 512MiB")
        ->transform(CLI::AsSizeValue(false))
        ->group(kGroup);
    add_number(app, "--keep-mass", request.keep_mass,
               "instead of a capacity: share of the window's attention to keep");
    app.add_option("--preset", request.preset, "settings of a publication: paper")->group(kGroup);
    app.add_option_function<std::string>(
           "--profile",
           [&request](std::string const& path) {
               auto profile = read_profile(path);
               if (!profile) throw CLI::ValidationError("--profile", profile.error().message);
               request.profile = std::make_shared<Profile>(std::move(profile).value());
           },
           "dynamickv: what `dkv calibrate` measured of this model")
        ->group(kGroup)
        ->type_name("FILE");
    add_number(app, "--profile-alpha", request.profile_alpha,
               "budgets go with weight^alpha, instead of the profile's own");
    add_number(app, "--profile-floor", request.profile_floor,
               "least of base that every head keeps, instead of the profile's own");
}

}  // namespace dkv
