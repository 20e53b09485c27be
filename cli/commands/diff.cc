#include "cli/render/diff.h"

#include "cli/commands/all.h"
#include "sidecar/config/policy_flags.h"

namespace dkv::cli {
namespace {

struct DiffOptions {
    std::string file;
    std::string policy = "dynamickv";
    std::string against;
    PolicyRequest request;
};

Result<Output> diff(Context const& context, DiffOptions const& options) {
    auto const backend = make_cpu_backend();
    auto const file = DKV_TRY(open_cache(options.file));
    auto const side = [&](std::string const& name) {
        return offline::run_side(*backend, *file, name, options.request);
    };
    auto const a = DKV_TRY(side(options.policy));
    auto const b = DKV_TRY(side(options.against));
    auto const found = DKV_TRY(offline::compare(*backend, *file, a, b));
    return Output{diff_text(found, context.style()), to_json(found)};
}

}  // namespace

Run setup_diff(CLI::App& app, Context const& context) {
    auto options = std::make_shared<DiffOptions>();
    app.add_option("FILE", options->file, "a saved cache: dkv's safetensors, with queries")
        ->required();
    app.add_option("--policy", options->policy, "policy or reference form A; dynamickv");
    app.add_option("--against", options->against,
                   "policy or reference form B: dynamickv-ref, snapkv-ref, pyramidkv-ref, "
                   "streamingllm-ref, snapkv-kvpress, h2o-kvpress")
        ->required();
    add_policy_flags(app, options->request);
    return [=, &context]() -> Result<Output> { return diff(context, *options); };
}

}  // namespace dkv::cli
