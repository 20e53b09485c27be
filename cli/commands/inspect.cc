#include "cli/render/inspect.h"

#include "cli/commands/all.h"
#include "cli/render/text.h"
#include "cli/saved/open_flags.h"
#include "cli/saved/paths.h"
#include "cli/saved/progress_bar.h"

namespace dkv::cli {
namespace {

struct InspectOptions {
    std::vector<std::string> files;
    bool recursive = false;
    bool verify = false;
    OpenOptions open;
};

/// Layer by layer, so that it can be stopped.
Result<void> verify(SavedCache const& file, std::size_t index, offline::Progress const& progress) {
    auto const layers = file.geometry().layers;
    std::uint64_t const bytes = file.facts().file_bytes;
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
        if (progress.stopped()) return offline::interrupted();
        DKV_TRY(file.verify(layer));
        progress.report(index, bytes * (layer + 1) / layers, bytes);
    }
    return {};
}

Result<InspectedFile> inspect_one(InspectOptions const& options,
                                  InputFile const& input,
                                  std::size_t index,
                                  offline::Progress const& progress) {
    auto const file = DKV_TRY(open_cache(input.path, options.open));
    auto found = inspect_file(*file, input.path.string());
    if (!found) return naming(input.path, found.error());
    auto inspected = std::move(found).value();
    if (options.verify) DKV_TRY(verify(*file, index, progress));
    inspected.verified = options.verify;
    return inspected;
}

Result<Output> inspect(Context const& context, InspectOptions const& options) {
    auto const inputs = DKV_TRY(find_inputs(options.files, options.recursive, options.open));
    ProgressBar bar(context,
                    options.verify ? sizes_of(inputs.files) : std::vector<std::uint64_t>());
    offline::Progress const progress =
        options.verify ? progress_of(bar, context) : offline::Progress();

    Output output;
    output.json["files"] = Json::array();
    for (std::size_t index = 0; index < inputs.files.size(); ++index) {
        auto const one = inspect_one(options, inputs.files[index], index, progress);
        if (options.verify) bar.ended(index);
        if (!one && (inputs.files.size() == 1 || one.error().code == ErrorCode::Cancelled))
            return one.error();
        if (!one) {
            bar.print(*context.environment.err, "dkv: " + one_line(one.error().message) + "\n");
            output.json["files"].push_back(
                {{"file", inputs.files[index].path.string()}, {"error", one.error().message}});
            output.exit_code = kExitFailed;
            continue;
        }
        output.text +=
            (output.text.empty() ? "" : "\n") + inspect_text(one.value(), context.style());
        output.json["files"].push_back(to_json(one.value()));
    }
    return output;
}

}  // namespace

Run setup_inspect(CLI::App& app, Context const& context) {
    auto options = std::make_shared<InspectOptions>();
    app.add_option("FILE", options->files, "saved caches, and folders of them")->required();
    app.add_flag("-r,--recursive", options->recursive, "also what is in folders of folders");
    app.add_flag("--verify", options->verify, "read every byte: checksums, and finite numbers");
    add_open_flags(app, options->open);
    return [=, &context]() -> Result<Output> { return inspect(context, *options); };
}

}  // namespace dkv::cli
