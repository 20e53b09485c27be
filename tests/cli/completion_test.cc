#include "cli/completion.h"

#include <fstream>
#include <sstream>

#include <doctest/doctest.h>

#include "tests/cli/fakes.h"

using namespace dkv;
using namespace dkv::cli;
using namespace dkv::test;

namespace {

CompletionNode node_at(std::string const& path) {
    Environment environment;
    environment.add_daemon_flags = add_flags;
    Program const program(environment);
    for (auto& node : completion_nodes(program.app))
        if (node.path == path) return node;
    FAIL("no command at " << path);
    return {};
}

CompletionNode::Option option_of(CompletionNode const& node, std::string const& name) {
    for (auto const& option : node.options)
        if (option.name == name) return option;
    FAIL("no option " << name);
    return {};
}

}  // namespace

TEST_CASE("completion: the program's nodes are its commands, options and choices") {
    auto const root = node_at("");
    CHECK(root.commands.size() == cli::commands().size());
    CHECK(root.commands.front().name == "status");

    auto const set = node_at("/policy/set");
    CHECK(set.positional.list == "policies");
    CHECK(option_of(set, "--instance").values.list == "instances");
    CHECK(option_of(set, "--pool").values.words == std::vector<std::string>{"avg", "max"});
    CHECK(option_of(set, "--capacity").takes_value);
    CHECK_FALSE(option_of(set, "--all").takes_value);
    CHECK(option_of(set, "--profile").values.is_file);
    CHECK(option_of(set, "--secret-key").values.is_file);
    CHECK(option_of(node_at("/keys"), "--out").values.is_file);
    CHECK(option_of(node_at("/serve"), "--clients").values.is_file);
    CHECK(node_at("/profile/show").positional.is_file);
    CHECK(node_at("/compact").positional.is_file);
    CHECK(option_of(node_at("/compact"), "--output").values.is_file);
    CHECK(option_of(node_at("/compact"), "--format").values.words ==
          std::vector<std::string>{"dkv", "hf", "llama-state", "llama-slot", "mlx-lm",
                                   "mlx-lm@0.31"});
    auto const policies = option_of(node_at("/sweep"), "--policy").values;
    CHECK(policies.list.empty());
    CHECK(std::ranges::find(policies.words, "dynamickv") != policies.words.end());
    auto const models = node_at("/plan").positional.words;
    CHECK(std::ranges::find(models, "llama-3-8b") != models.end());
    CHECK(option_of(set, "--json").summary == "print JSON: exact numbers, ids as hex strings");
    CHECK(option_of(node_at("/serve"), "--policy").values.list == "policies");
    CHECK(node_at("/completion").positional.words ==
          std::vector<std::string>{"bash", "fish", "zsh"});
    for (auto const& option : node_at("/completion").options)
        CHECK(option.name != "--words");
}

TEST_CASE("dkv completion prints a script for each shell") {
    FakeSidecar sidecar;

    auto const bash = run_dkv({"completion", "bash"}, sidecar).out;
    CHECK(contains(bash, "complete -F _dkv dkv\n"));
    CHECK(contains(bash, "'/policy/set --pool'"));
    CHECK(contains(bash, "--pool') COMPREPLY=($(compgen -W \"avg max\""));
    CHECK(contains(bash, "'/policy/set --profile'"));
    CHECK(contains(bash, "--sidecar-key') COMPREPLY=($(compgen -f -- \"$word\")); return"));
    auto const zsh = run_dkv({"completion", "zsh"}, sidecar).out;
    CHECK(contains(zsh, "--sidecar-key') _files; return ;;"));
    CHECK(zsh.starts_with("#compdef dkv\n"));
    CHECK(contains(zsh, "'status:the sidecar at a glance: engines, sessions, errors, savings'"));
    auto const fish = run_dkv({"completion", "fish"}, sidecar).out;
    CHECK(contains(fish,
                   "complete -c dkv -n '__dkv_at \"/policy/set\"' -l pool -x -a 'avg max' -d "));
    CHECK(contains(fish, "-n '__dkv_at \"/policy/set\"' -l profile -r -F -d "));
    CHECK(contains(fish, "-n '__dkv_at \"/profile/show\"' -F\n"));
    CHECK(sidecar.connects == 0);
}

TEST_CASE("dkv completion --words asks the sidecar, one word per line") {
    auto sidecar = FakeSidecar::running();
    sidecar.instances = [] {
        wire::InstanceListT list;
        list.instances.push_back(some_instance(0xfeedbeef));
        return list;
    };

    CHECK(run_dkv({"completion", "--words", "policies"}, sidecar).out ==
          "fullkv\nstreamingllm\ndynamickv\n");
    CHECK(run_dkv({"completion", "--words", "instances"}, sidecar).out == "0x00000000feedbeef\n");
    CHECK(run_dkv({"completion", "--words", "sessions"}, sidecar).out.empty());
}

TEST_CASE("the man pages name every command and every option") {
    Environment environment;
    environment.add_daemon_flags = add_flags;
    Program const program(environment);
    auto const page_of = [](char const* name) {
        std::ifstream file(std::string(DKV_MAN_FOLDER) + "/" + name);
        std::ostringstream text;
        for (char c = 0; file.get(c);)
            if (c != '\\') text << c;  // roff writes "\-\-json".
        return text.str();
    };
    auto const dkv = page_of("man1/dkv.1");
    auto const dkvd = page_of("man8/dkvd.8");

    for (auto const& node : completion_nodes(program.app)) {
        for (auto const& command : node.commands) {
            CAPTURE(command.name);
            CHECK(contains(dkv, command.name));
        }
        for (auto const& option : node.options) {
            CAPTURE(node.path);
            CAPTURE(option.name);
            bool const is_daemons = node.path == "/serve" && option.name != "--json" &&
                                    option.name != "--timeout-ms" && option.name != "--no-color" &&
                                    option.name != "--sidecar-key";
            CHECK(contains(is_daemons ? dkvd : dkv, option.name));
        }
    }
    for (auto const* code : {"0", "1", "2", "3", "4", "70"})
        CHECK(contains(dkv, std::string(".TP\n.B ") + code + "\n"));
}
