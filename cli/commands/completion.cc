#include "cli/completion.h"

#include <map>

#include "cli/commands/all.h"
#include "cli/known_policies.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

struct CompletionOptions {
    std::string shell;
    std::string words;
};

std::map<std::string, Shell> const& shells() {
    static std::map<std::string, Shell> const known{
        {"bash", Shell::Bash}, {"fish", Shell::Fish}, {"zsh", Shell::Zsh}};
    return known;
}

/// What a shell asks for at the press of a key: one word per line.
Result<std::string> words_of(Context const& context, std::string const& list) {
    std::string out;
    if (list == "policies") {
        auto const answer = DKV_TRY(known_policies(context));
        for (auto const& policy : answer.policies)
            out += one_line(policy->name) + "\n";
        return out;
    }
    auto const controller = DKV_TRY(context.connect());
    if (list == "instances") {
        auto const answer = DKV_TRY(controller->instances());
        for (auto const& instance : answer.instances)
            out += hex_id(instance->instance) + "\n";
    } else {
        auto const answer = DKV_TRY(controller->sessions(0));
        for (auto const& session : answer.sessions)
            out += hex_id(session->session) + "\n";
    }
    return out;
}

}  // namespace

Run setup_completion(CLI::App& app, Context const& context) {
    auto options = std::make_shared<CompletionOptions>();
    app.add_option("SHELL", options->shell, "the script to print: source it, or see dkv(1)")
        ->check(CLI::IsMember(shells()));
    app.add_option("--words", options->words, "what the scripts ask a sidecar for")
        ->check(CLI::IsMember({"policies", "instances", "sessions"}))
        ->group("");  // Not for people: hidden.
    app.callback([options] {
        if (options->shell.empty() == options->words.empty())
            throw CLI::ValidationError("SHELL is required: bash, zsh or fish");
    });
    CLI::App const* const root = app.get_parent();
    return [&context, options, root]() -> Result<Output> {
        if (!options->words.empty())
            return Output{DKV_TRY(words_of(context, options->words)), nullptr};
        auto const script = completion_script(shells().at(options->shell), completion_nodes(*root));
        return Output{script, {{"shell", options->shell}, {"script", script}}};
    };
}

}  // namespace dkv::cli
