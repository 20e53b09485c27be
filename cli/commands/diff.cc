#include "cli/render/diff.h"

#include "cli/commands/all.h"
#include "cli/saved/offline/diff_files.h"
#include "cli/saved/open_flags.h"
#include "sidecar/config/policy_flags.h"

namespace dkv::cli {
namespace {

struct DiffOptions {
    std::vector<std::string> files;
    std::string policy = "dynamickv";
    std::string against;
    PolicyRequest request;
    OpenOptions open;
};

Result<offline::Diff> compare_policies(Backend& backend, DiffOptions const& options) {
    auto const file = DKV_TRY(open_cache(options.files[0], options.open));
    if (!file->facts().is_whole())
        return Error{ErrorCode::Unsupported,
                     "compacted already: policies choose from a whole prompt"};
    auto const side = [&](std::string const& name) {
        return offline::run_side(backend, *file, name, options.request);
    };
    auto const a = DKV_TRY(side(options.policy));
    auto const b = DKV_TRY(side(options.against));
    return offline::compare(backend, *file, a, b);
}

Result<offline::Diff> diff_policies(Backend& backend, DiffOptions const& options) {
    auto diff = compare_policies(backend, options);
    return diff ? std::move(diff) : naming(options.files[0], diff.error());
}

Result<offline::Diff> diff_files(Backend& backend, DiffOptions const& options) {
    auto const a = DKV_TRY(open_cache(options.files[0], options.open));
    auto const b = DKV_TRY(open_cache(options.files[1], options.open));
    return offline::compare_files(backend, *a, *b, {options.files[0], options.files[1]});
}

Result<Output> diff(Context const& context, DiffOptions const& options) {
    auto const backend = make_cpu_backend();
    auto const found = DKV_TRY(options.files.size() == 2 ? diff_files(*backend, options)
                                                         : diff_policies(*backend, options));
    return Output{diff_text(found, context.style()), to_json(found)};
}

/// Wrong usage that CLI11 cannot see.
void check_diff(DiffOptions const& options) {
    if (options.files.size() == 1 && options.against.empty())
        throw CLI::ValidationError("give a second FILE, or --against with a policy");
    if (options.files.size() == 2 && !options.against.empty())
        throw CLI::ValidationError("--against is for one FILE");
}

}  // namespace

Run setup_diff(CLI::App& app, Context const& context) {
    auto options = std::make_shared<DiffOptions>();
    app.add_option("FILE", options->files,
                   "two saved caches of one prompt; or one, whole and with queries, and --against")
        ->required()
        ->expected(1, 2);
    app.add_option("--policy", options->policy,
                   "of one FILE: policy or reference form A; dynamickv");
    app.add_option("--against", options->against,
                   "of one FILE: policy or reference form B: dynamickv-ref, snapkv-ref, "
                   "pyramidkv-ref, streamingllm-ref, snapkv-kvpress, h2o-kvpress");
    add_policy_flags(app, options->request);
    add_open_flags(app, options->open);
    app.callback([options] { check_diff(*options); });
    return [=, &context]() -> Result<Output> { return diff(context, *options); };
}

}  // namespace dkv::cli
