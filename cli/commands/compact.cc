#include <algorithm>

#include <fmt/format.h>

#include "cli/certificates.h"
#include "cli/commands/all.h"
#include "cli/render/text.h"
#include "cli/saved/batch.h"
#include "cli/saved/offline/convert.h"
#include "cli/saved/open_flags.h"
#include "cli/saved/paths.h"
#include "cli/saved/shard.h"
#include "sidecar/config/policy_flags.h"

namespace dkv::cli {
namespace {

struct CompactOptions {
    std::vector<std::string> files;
    std::string output;
    bool recursive = false;
    unsigned jobs = 0;
    bool no_verify = false;
    std::string shard = "0/1";
    std::optional<double> risk;
    offline::CompactRequest request;
};

RowBits bits_named(std::string const& name) {
    if (name == name_of(RowBits::Mixed)) return RowBits::Mixed;
    return name == name_of(RowBits::Eight) ? RowBits::Eight : RowBits::Four;
}

void say_skipped(Context const& context, InputFiles const& inputs) {
    if (inputs.skipped > 0)
        *context.environment.err << fmt::format("dkv: {} in folders passed over: no {}\n",
                                                counted(inputs.skipped, "file"),
                                                inputs.skipped == 1 ? "cache" : "caches");
}

Result<Output> compact(Context const& context, CompactOptions const& options) {
    auto const& wish = options.request;
    auto const shard = DKV_TRY(parse_shard(options.shard));
    auto const inputs = DKV_TRY(find_inputs(options.files, options.recursive, wish.open));
    // Of all files: every shard puts its outputs where the others expect them.
    auto const outputs = DKV_TRY(outputs_of(inputs, options.output, !wish.dry_run));
    say_skipped(context, inputs);
    std::vector<offline::CompactRequest> requests;
    std::vector<std::uint64_t> sizes;
    for (std::size_t index = 0; index < outputs.size(); ++index) {
        if (!shard.has(inputs.files[index].path)) continue;
        requests.push_back(wish);
        requests.back().input = inputs.files[index].path;
        requests.back().output = outputs[index];
        requests.back().verify = !options.no_verify;
        sizes.push_back(seen_file(inputs.files[index].path).bytes);
    }
    Batch batch(context, std::move(sizes), wish.dry_run);
    offline::Ended const ended = [&](std::size_t file, Outcome const& outcome) {
        batch.ended(file, requests[file].input, outcome);
    };
    return batch.output(offline::compact_all(requests, options.jobs, batch.progress(), ended));
}

struct ConvertOptions {
    std::vector<std::string> files;
    std::string output;
    bool recursive = false;
    bool no_verify = false;
    offline::ConvertRequest request;
};

Result<Output> convert(Context const& context, ConvertOptions const& options) {
    auto const inputs =
        DKV_TRY(find_inputs(options.files, options.recursive, options.request.open));
    auto const outputs = DKV_TRY(outputs_of(inputs, options.output, true));
    say_skipped(context, inputs);
    auto const backend = make_cpu_backend();
    Batch batch(context, sizes_of(inputs.files), false);
    auto const progress = batch.progress();
    std::vector<Outcome> outcomes;
    for (std::size_t index = 0; index < outputs.size(); ++index) {
        auto request = options.request;
        request.input = inputs.files[index].path;
        request.output = outputs[index];
        request.verify = !options.no_verify;
        outcomes.push_back(progress.stopped()
                               ? Outcome(offline::interrupted())
                               : offline::convert(*backend, request, progress, index));
        batch.ended(index, request.input, outcomes.back());
    }
    return batch.output(outcomes);
}

template <class Options>
void add_file_options(CLI::App& app, Options& options) {
    app.add_option("FILE", options.files, "saved caches, and folders of them")->required();
    app.add_option("-o,--output", options.output,
                   "the file to write; for several files the folder, with the same names in it")
        ->required()
        ->type_name("FILE");
    add_format_flag(app, "--format", options.request.format, true,
                    "of the output; the input's, or dkv where that is only read. mlx-lm: as 0.32 "
                    "and later read it; mlx-lm@VERSION: as that version does");
    add_key_order_flag(app, options.request.key_order);
    app.add_flag("-r,--recursive", options.recursive, "also what is in folders of folders");
    app.add_flag("--no-verify", options.no_verify,
                 "do not check every byte that is read: faster, and broken rows stay unseen");
}

}  // namespace

Run setup_compact(CLI::App& app, Context const& context) {
    auto options = std::make_shared<CompactOptions>();
    auto& request = options->request;
    request.policy.name = "auto";
    add_file_options(app, *options);
    app.add_option("--policy", request.policy.name,
                   "what keeps tokens; auto: the profile, or equal budgets where there is none");
    app.add_option_function<std::string>(
           "--bits", [&request](std::string const& name) { request.bits = bits_named(name); },
           "dkv's format: of K and V, 8 or 4, or mixed: 4, and 8 for the best; a capacity or ratio "
           "then means the bytes that so many tokens have in FILE, and more tokens are kept in "
           "them")
        ->check(CLI::IsMember({"8", "4", "mixed"}));
    app.add_flag("--fill", request.fill,
                 "llama.cpp: fill every layer up to the largest with its next best tokens");
    app.add_flag("--keep-queries", request.keep_queries,
                 "dkv's format: the window's queries go along, for dkv diff");
    app.add_flag("--dry-run", request.dry_run, "say what would come of it; write nothing");
    app.add_flag("--force", request.force, "also write over what is there");
    app.add_option("-j,--jobs", options->jobs, "files at once; every core")
        ->check(CLI::Range(1U, 1024U))
        ->type_name("N");
    add_shard_flag(app, options->shard);
    add_policy_flags(app, request.policy);
    add_risk_flag(app, options->risk);
    add_open_flags(app, request.open);
    return [=, &context, &app]() -> Result<Output> {
        auto& wish = options->request;
        if (options->risk)
            wish.certified =
                DKV_TRY(take_certificate(app, wish.policy.name, *options->risk)).certified;
        return compact(context, *options);
    };
}

Run setup_convert(CLI::App& app, Context const& context) {
    auto options = std::make_shared<ConvertOptions>();
    add_file_options(app, *options);
    app.add_flag("--drop-queries", options->request.drop_queries,
                 "leave the window's queries out, where there are any");
    app.add_flag("--force", options->request.force, "also write over what is there");
    add_open_flags(app, options->request.open);
    return [=, &context]() -> Result<Output> { return convert(context, *options); };
}

}  // namespace dkv::cli
