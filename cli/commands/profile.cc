#include "cli/render/profile.h"

#include "cli/commands/all.h"
#include "sidecar/policy/policy.h"

namespace dkv::cli {
namespace {

constexpr char const* kHelp =
    "A profile says how much each layer or KV head of one model matters. With one, the policies "
    "auto\n"
    "and dynamickv keep more of what counts in the same bytes.\n\n"
    "Without a command: lists the profiles on this machine, with the weights that each was made\n"
    "for, in the order in which profile=\"auto\" tries them: the folders in DKV_PROFILES,\n"
    "~/.cache/dkv/profiles, and those that come with dkv.\n\n"
    "  dkv profile\n"
    "  dkv profile show mine.json --tokens 4000 --capacity 256\n"
    "  dkv calibrate MODEL -o mine.json         makes one\n"
    "  dkv profile import --help                takes others' measurements\n"
    "  dkv profile pull owner/name              from the Hugging Face Hub; push: to it\n"
    "  dkv policy set auto --profile mine.json  lets every engine use it";

struct ProfileOptions {
    std::string file;
    bool plot = false;
    std::optional<std::uint32_t> capacity;
    std::optional<std::uint32_t> tokens;
    std::optional<std::uint32_t> window;
};

/// What dynamickv keeps of a prompt, by the sidecar's own code.
Result<ProfileBudgets> budgets_of(ProfileFile const& file, ProfileOptions const& options) {
    auto const params = DKV_TRY(resolve({.name = "dynamickv",
                                         .capacity = options.capacity,
                                         .window = options.window,
                                         .profile = std::make_shared<Profile>(file.profile)}));
    PromptShape const shape{.layers = file.profile.layers,
                            .kv_heads = file.kv_heads,
                            .prompt_tokens = *options.tokens,
                            .window = params.window};
    ProfileBudgets budgets{.capacity = params.capacity,
                           .prompt_tokens = shape.prompt_tokens,
                           .window = params.window,
                           .lengths = {}};
    auto const policy = make_policy(params, shape);
    for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
        auto& lengths = budgets.lengths.emplace_back(shape.kv_heads, shape.prompt_tokens);
        for (std::uint32_t head = 0; policy != nullptr && head < shape.kv_heads; ++head)
            lengths[head] = params.window + policy->budgets().layer(layer)[head];
    }
    return budgets;
}

Result<Output> show(Context const& context, ProfileOptions const& options) {
    auto const file = DKV_TRY(read_profile_file(options.file));
    std::optional<ProfileBudgets> budgets;
    if (options.tokens) budgets = DKV_TRY(budgets_of(file, options));
    return Output{profile_text(file, budgets, options.plot, context.style()),
                  to_json(file, budgets)};
}

}  // namespace

/// Only `show` is ours: what else there is, app.cc hands to Python before it parses anything.
Run setup_profile(CLI::App& app, Context const& context) {
    auto options = std::make_shared<ProfileOptions>();
    app.footer(kHelp);
    CLI::App* const show_app =
        app.add_subcommand("show", "what is in a profile; what it would keep");
    show_app->add_option("FILE", options->file, "what dkv calibrate wrote")->required();
    show_app->add_flag("--plot", options->plot, "a bar for each layer and head as well");
    auto* const tokens =
        show_app
            ->add_option("--tokens", options->tokens, "show what is kept of a prompt of this many")
            ->check(CLI::Range(1U, 1U << 30U))
            ->type_name("N");
    show_app->add_option("--capacity", options->capacity, "… at this capacity")
        ->needs(tokens)
        ->type_name("N");
    show_app->add_option("--window", options->window, "… with this window")
        ->needs(tokens)
        ->type_name("N");
    app.callback([show_app] {
        if (!show_app->parsed())
            throw CLI::ValidationError("options go behind the command: dkv profile …");
    });
    return [options, &context] { return show(context, *options); };
}

}  // namespace dkv::cli
