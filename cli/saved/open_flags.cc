#include "cli/saved/open_flags.h"

#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/finite.h"
#include "cli/saved/formats/gguf.h"

namespace dkv::cli {
namespace {

constexpr char const* kGroup = "Input";

std::vector<std::string> format_names(bool writable) {
    std::vector<std::string> names;
    for (auto const format :
         {FileFormat::Dkv, FileFormat::Hf, FileFormat::LlamaState, FileFormat::LlamaSlot,
          FileFormat::MlxLm, FileFormat::MlxLm031, FileFormat::Vllm, FileFormat::Lmcache}) {
        // The bytes tell which mlx-lm wrote a file.
        bool const wanted = writable ? is_writable(format) : format != FileFormat::MlxLm031;
        if (wanted) names.emplace_back(name_of(format));
    }
    return names;
}

/// "mlx-lm@0.29.1" as the name of what that version reads; all else stays.
std::string with_known_version(std::string& name) {
    if (auto const format = file_format(name)) name = name_of(*format);
    return "";
}

CLI::Option* add_format(CLI::App& app,
                        char const* flag,
                        std::optional<FileFormat>& format,
                        bool writable,
                        char const* help) {
    return app
        .add_option_function<std::string>(
            flag, [&format](std::string const& name) { format = file_format(name); }, help)
        ->transform(CLI::Validator(with_known_version, ""))
        ->check(CLI::IsMember(format_names(writable)));
}

}  // namespace

void add_format_flag(CLI::App& app,
                     char const* flag,
                     std::optional<FileFormat>& format,
                     bool writable,
                     char const* help) {
    add_format(app, flag, format, writable, help);
}

void add_open_flags(CLI::App& app, OpenOptions& options) {
    add_format(app, "--input-format", options.format, false,
               "what FILE is, instead of finding out from its bytes")
        ->group(kGroup);
    app.add_option("--layout", options.layout, "vLLM: how one layer's tensor lies")
        ->check(CLI::IsMember({"2THD", "T2HD", "TH2D"}))
        ->group(kGroup);
    add_model_flags(app, options);
}

void add_model_flags(CLI::App& app, OpenOptions& options) {
    app.add_option("--kv-heads", options.kv_heads,
                   "KV heads, which llama.cpp and LMCache do not save")
        ->check(CLI::Range(1U, 1024U))
        ->type_name("N")
        ->group(kGroup);
    app.add_option("--model", options.model,
                   "the model's name, instead of the file's; or its GGUF file, which says what "
                   "llama.cpp does not save: KV heads, rope, the order of dims")
        ->type_name("NAME")
        ->group(kGroup);
    auto* const theta = app.add_option("--rope-theta", options.rope.theta,
                                       "base of the rotation of the keys, instead of the file's")
                            ->check(CLI::PositiveNumber)
                            ->check(finite())
                            ->type_name("THETA")
                            ->group(kGroup);
    app.add_flag("--rope-interleaved", options.rope.interleaved,
                 "adjacent dims turn together, as llama.cpp has Llama's, instead of halves")
        ->needs(theta)
        ->group(kGroup);
    app.add_option("--rope-dims", options.rope.dims, "how many dims of a key turn; all of them")
        ->needs(theta)
        ->check(CLI::Range(2U, 1024U))
        ->type_name("N")
        ->group(kGroup);
    // Once all flags are read: what they say goes before what the file says.
    app.parse_complete_callback([&options] {
        if (!options.model.ends_with(".gguf")) return;
        auto const model = read_gguf(std::exchange(options.model, {}));
        if (!model) throw CLI::ValidationError("--model", model.error().message);
        complete(options, model.value());
    });
}

void add_key_order_flag(CLI::App& app, std::optional<KeyOrder>& order) {
    app.add_option_function<std::string>(
           "--key-order", [&order](std::string const& name) { order = key_order(name); },
           "which dims of the output's keys turn together; what its program expects: pairs "
           "(llama.cpp's Llama, Mistral …) or halves (Hugging Face, mlx-lm; llama.cpp's Qwen …)")
        ->check(CLI::IsMember({"halves", "pairs"}));
}

}  // namespace dkv::cli
