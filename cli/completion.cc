#include "cli/completion.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "cli/saved/models.h"
#include "sidecar/policy/policy.h"

namespace dkv::cli {
namespace {

using Node = CompletionNode;

std::vector<std::string> split_words(std::string const& text) {
    return CLI::detail::split(text, ',');
}

/// CLI11 names a closed choice "TEXT:{avg,max}".
std::vector<std::string> closed_choice(CLI::Option const& option) {
    auto const type = option.get_type_name();
    auto const open = type.find('{');
    auto const close = type.find('}');
    if (open == std::string::npos || close == std::string::npos || close < open) return {};
    return split_words(type.substr(open + 1, close - open - 1));
}

/// What only a sidecar knows, by the names that the command line gives to it.
std::string asked_list(std::string const& path, std::string const& name) {
    if (name == "--policy" || (name == "NAME" && path.starts_with("/policy/"))) return "policies";
    if (name == "--instance" || (name == "ID" && path == "/detach")) return "instances";
    if (name == "ID" && path == "/sessions") return "sessions";
    return {};
}

/// Words of commands that ask no sidecar: what this program knows itself.
std::vector<std::string> own_words(std::string const& path, std::string const& name) {
    std::vector<std::string> words;
    bool const of_files =
        path == "/compact" || path == "/sweep" || path == "/plan" || path == "/diff";
    if (of_files && (name == "--policy" || name == "--against"))
        for (auto const& policy : policies())
            words.emplace_back(policy.name);
    if (name == "--against")
        for (auto const form : reference_forms())
            words.emplace_back(form);
    if (path == "/plan" && name == "MODEL")
        for (auto const& model : known_models())
            words.emplace_back(model.name);
    return words;
}

CompletionValues values_of(std::string const& path, std::string const& name, CLI::Option const& o) {
    CompletionValues values{closed_choice(o), {}, false};
    if (values.words.empty()) values.words = own_words(path, name);
    if (values.words.empty()) values.list = asked_list(path, name);
    auto const& type = o.get_type_name();
    values.is_file = name == "FILE" || type == "FILE" || type == "FOLDER";
    return values;
}

std::string first_line(std::string text) {
    text.resize(std::min(text.find('\n'), text.size()));
    return text;
}

void add_options(Node& node, CLI::App const& app) {
    for (CLI::Option const* option : app.get_options()) {
        if (option->get_positional() || option->get_group().empty()) continue;
        bool const takes_value = option->get_items_expected_max() > 0;
        auto const add = [&](std::string const& name) {
            for (auto const& known : node.options)
                if (known.name == name) return;  // The command's own goes before the program's.
            node.options.push_back(
                {name, first_line(option->get_description()), takes_value,
                 takes_value ? values_of(node.path, name, *option) : CompletionValues{}});
        };
        for (auto const& name : option->get_snames())
            add("-" + name);
        for (auto const& name : option->get_lnames())
            add("--" + name);
    }
}

void walk(CLI::App const& app,
          CLI::App const& root,
          std::string const& path,
          std::vector<Node>& nodes) {
    Node node;
    node.path = path;
    auto const children = app.get_subcommands([](CLI::App const*) { return true; });
    for (CLI::App const* child : children)
        node.commands.push_back({child->get_name(), first_line(child->get_description())});
    add_options(node, app);
    if (&app != &root) add_options(node, root);
    for (CLI::Option const* option : app.get_options())
        if (option->get_positional())
            node.positional = values_of(path, option->get_name(true), *option);
    nodes.push_back(std::move(node));
    for (CLI::App const* child : children)
        walk(*child, root, path + "/" + child->get_name(), nodes);
}

std::string quoted(std::string const& text) {
    std::string out = "'";
    for (char const c : text)
        out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
}

std::string ask(std::string const& list) {
    return fmt::format("$(dkv completion --words {} 2>/dev/null)", list);
}

std::string joined(std::vector<std::string> const& words, char const* separator) {
    return fmt::format("{}", fmt::join(words, separator));
}

std::vector<std::string> paths_of(std::vector<Node> const& nodes) {
    std::vector<std::string> paths;
    for (Node const& node : nodes)
        if (!node.path.empty()) paths.push_back(node.path);
    return paths;
}

/// What completes the values of options → the "PATH OPTION" patterns that it completes.
std::map<std::string, std::vector<std::string>> by_values(
    std::vector<Node> const& nodes, std::string (*text)(CompletionValues const&)) {
    std::map<std::string, std::vector<std::string>> patterns;
    for (Node const& node : nodes)
        for (auto const& option : node.options)
            if (option.takes_value)
                patterns[text(option.values)].push_back(quoted(node.path + " " + option.name));
    return patterns;
}

// ---- bash

constexpr char const* kBashFiles = "-f";  // Of compgen.

std::string bash_reply(std::string const& words) {
    if (words == kBashFiles) return "COMPREPLY=($(compgen -f -- \"$word\"))";
    return fmt::format("COMPREPLY=($(compgen -W \"{}\" -- \"$word\"))", words);
}

std::string bash_words(CompletionValues const& values) {
    if (values.is_file) return kBashFiles;
    return values.list.empty() ? joined(values.words, " ") : ask(values.list);
}

std::string bash_script(std::vector<Node> const& nodes) {
    std::string out =
        "# bash completion for dkv, made by 'dkv completion bash'\n"
        "_dkv() {\n"
        "    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} at='' "
        "index\n"
        "    for ((index = 1; index < COMP_CWORD; index++)); do\n"
        "        case \"$at/${COMP_WORDS[index]}\" in\n";
    out += fmt::format("            {}) at=$at/${{COMP_WORDS[index]}} ;;\n",
                       joined(paths_of(nodes), " | "));
    out += "        esac\n    done\n    COMPREPLY=()\n    case \"$at $previous\" in\n";
    for (auto const& [words, patterns] : by_values(nodes, bash_words))
        out += fmt::format("        {}) {}return ;;\n", joined(patterns, " | "),
                           words.empty() ? "" : bash_reply(words) + "; ");
    out += "    esac\n    case \"$at\" in\n";
    for (Node const& node : nodes) {
        std::vector<std::string> names;
        std::vector<std::string> options;
        for (auto const& command : node.commands)
            names.push_back(command.name);
        for (auto const& option : node.options)
            options.push_back(option.name);
        if (auto const words = bash_words(node.positional); !words.empty()) names.push_back(words);
        out += fmt::format(
            "        {})\n            if [[ $word == -* ]]; then {}\n            else {}; fi ;;\n",
            quoted(node.path), bash_reply(joined(options, " ")), bash_reply(joined(names, " ")));
    }
    return out + "    esac\n}\ncomplete -F _dkv dkv\n";
}

// ---- zsh

std::string zsh_item(std::string const& word, std::string const& summary) {
    auto item = word;  // ':' parts the word from its description.
    for (std::size_t at = 0; (at = item.find(':', at)) != std::string::npos; at += 2)
        item.insert(at, "\\");
    return quoted(item + ":" + summary);
}

std::string zsh_add(CompletionValues const& values) {
    if (values.is_file) return "_files";
    if (!values.list.empty()) return fmt::format("compadd -- ${{(f)\"{}\"}}", ask(values.list));
    if (!values.words.empty()) return "compadd -- " + joined(values.words, " ");
    return "_default";
}

std::string zsh_script(std::vector<Node> const& nodes) {
    std::string out =
        "#compdef dkv\n"
        "# zsh completion for dkv, made by 'dkv completion zsh'\n"
        "_dkv() {\n"
        "    local at='' index\n"
        "    local -a commands options\n"
        "    for ((index = 2; index < CURRENT; index++)); do\n"
        "        case \"$at/${words[index]}\" in\n";
    out +=
        fmt::format("            {}) at=$at/${{words[index]}} ;;\n", joined(paths_of(nodes), "|"));
    out += "        esac\n    done\n    case \"$at ${words[CURRENT-1]}\" in\n";
    for (auto const& [words, patterns] : by_values(nodes, zsh_add))
        out += fmt::format("        {}) {}; return ;;\n", joined(patterns, " | "), words);
    out += "    esac\n    case \"$at\" in\n";
    for (Node const& node : nodes) {
        out += fmt::format("        {})\n            commands=(", quoted(node.path));
        for (auto const& command : node.commands)
            out += "\n                " + zsh_item(command.name, command.summary);
        out += ")\n            options=(";
        for (auto const& option : node.options)
            out += "\n                " + zsh_item(option.name, option.summary);
        out += ")\n";
        auto const& positional = node.positional;
        if (!positional.words.empty() || !positional.list.empty() || positional.is_file)
            out += "            [[ $PREFIX == -* ]] || " + zsh_add(node.positional) + "\n";
        out += "            ;;\n";
    }
    out +=
        "    esac\n"
        "    if [[ $PREFIX == -* ]]; then _describe -o option options\n"
        "    elif (( ${#commands} )); then _describe command commands; fi\n"
        "}\n"
        "if [[ ${funcstack[1]} == _dkv ]]; then _dkv \"$@\"; else compdef _dkv dkv; fi\n";
    return out;
}

// ---- fish

std::string fish_values(CompletionValues const& values) {
    if (values.is_file) return " -F";
    if (!values.list.empty())
        return fmt::format(" -a '(dkv completion --words {} 2>/dev/null)'", values.list);
    return values.words.empty() ? std::string() : " -a " + quoted(joined(values.words, " "));
}

std::string fish_quoted(std::string const& text) {
    std::string out = "'";
    for (char const c : text) {
        if (c == '\'' || c == '\\') out += '\\';
        out += c;
    }
    return out + "'";
}

std::string fish_script(std::vector<Node> const& nodes) {
    std::string out =
        "# fish completion for dkv, made by 'dkv completion fish'\n"
        "function __dkv_at\n"
        "    set -l at ''\n"
        "    for word in (commandline -opc)[2..-1]\n";
    out += fmt::format("        if contains -- \"$at/$word\" {}\n", joined(paths_of(nodes), " "));
    out +=
        "            set at \"$at/$word\"\n        end\n    end\n"
        "    test \"$at\" = \"$argv[1]\"\nend\n"
        "complete -c dkv -f\n";
    for (Node const& node : nodes) {
        auto const line = fmt::format("complete -c dkv -n '__dkv_at \"{}\"'", node.path);
        for (auto const& command : node.commands)
            out +=
                fmt::format("{} -a {} -d {}\n", line, command.name, fish_quoted(command.summary));
        if (auto const values = fish_values(node.positional); !values.empty())
            out += line + values + "\n";
        for (auto const& option : node.options) {
            bool const is_long = option.name.starts_with("--");
            out += fmt::format("{} -{} {}{}{} -d {}\n", line, is_long ? "l" : "s",
                               option.name.substr(is_long ? 2 : 1),
                               !option.takes_value     ? ""
                               : option.values.is_file ? " -r"
                                                       : " -x",
                               fish_values(option.values), fish_quoted(option.summary));
        }
    }
    return out;
}

}  // namespace

std::vector<Node> completion_nodes(CLI::App const& app) {
    std::vector<Node> nodes;
    walk(app, app, "", nodes);
    return nodes;
}

std::string completion_script(Shell shell, std::vector<Node> const& nodes) {
    switch (shell) {
        case Shell::Bash: return bash_script(nodes);
        case Shell::Zsh: return zsh_script(nodes);
        case Shell::Fish: return fish_script(nodes);
    }
    return {};
}

}  // namespace dkv::cli
