#include "cli/render/plan.h"

#include "cli/commands/all.h"
#include "sidecar/config/policy_flags.h"

namespace dkv::cli {
namespace {

struct PlanOptions {
    std::string model;
    std::string config_json;
    std::optional<std::uint32_t> layers;
    std::string heads;
    std::optional<std::uint32_t> head_dim;
    std::optional<Dtype> dtype;
    std::optional<std::uint64_t> tokens;
    PolicyRequest request{.name = "auto"};
};

constexpr std::uint64_t kPlanTokensMax = 1U << 30U;

Result<ModelGeometry> model_of(PlanOptions const& options) {
    ModelGeometry model{.name = "this model", .geometry = {}, .layers_bounded = 0};
    model.geometry.dtype = Dtype::Bf16;
    if (!options.config_json.empty())
        model = DKV_TRY(read_config_json(options.config_json));
    else if (!options.model.empty())
        model = DKV_TRY(find_model(options.model));
    auto& geometry = model.geometry;
    if (options.layers) geometry.layers = *options.layers;
    if (options.head_dim) geometry.head_dim = *options.head_dim;
    if (options.dtype) geometry.dtype = *options.dtype;
    if (!options.heads.empty()) {
        auto const [q_heads, kv_heads] = DKV_TRY(parse_heads(options.heads));
        geometry.q_heads = q_heads;
        geometry.kv_heads = kv_heads;
    }
    DKV_TRY(check(geometry));
    return model;
}

Result<Output> plan(Context const& context, PlanOptions const& options) {
    Plan made{.model = DKV_TRY(model_of(options)), .prompt_tokens = 0, .estimate = {}};
    if (!options.tokens && !made.model.prompt_tokens)
        return Error{ErrorCode::InvalidArgument, "how long is the prompt? give --tokens"};
    made.prompt_tokens =
        options.tokens ? static_cast<std::uint32_t>(*options.tokens) : *made.model.prompt_tokens;
    made.estimate = DKV_TRY(offline::estimate(made.model.geometry, made.prompt_tokens,
                                              options.request, made.model.name));
    return Output{plan_text(made, context.style()), to_json(made)};
}

/// Wrong usage that CLI11 cannot see.
void check_plan(PlanOptions const& options) {
    if (options.model.empty() && options.config_json.empty() &&
        (!options.layers || options.heads.empty() || !options.head_dim))
        throw CLI::ValidationError(
            "give a MODEL, --config-json, or --layers, --heads and --head-dim");
    if (!options.heads.empty())
        if (auto const heads = parse_heads(options.heads); !heads)
            throw CLI::ValidationError("--heads", heads.error().message);
}

}  // namespace

Run setup_plan(CLI::App& app, Context const& context) {
    auto options = std::make_shared<PlanOptions>();
    auto* const model = app.add_option(
        "MODEL", options->model,
        "a known model (llama-3-8b, qwen2.5-7b, mistral-7b, gemma-3-1b, smollm2 …), a model's "
        "folder, or a saved cache");
    app.add_option("--config-json", options->config_json,
                   "a model's config.json, as Hugging Face has it")
        ->type_name("FILE")
        ->excludes(model);
    app.add_option("--tokens", options->tokens, "length of the prompt: 32768, 32k")
        ->transform(CLI::AsSizeValue(false))
        ->check(CLI::Range(std::uint64_t{1}, kPlanTokensMax))
        ->type_name("N");
    app.add_option("--layers", options->layers, "layers of the model")->type_name("N");
    app.add_option("--heads", options->heads, "query heads and KV heads per layer: 32/8")
        ->type_name("Q/KV");
    app.add_option("--head-dim", options->head_dim, "dims of a head")->type_name("N");
    app.add_option_function<std::string>(
           "--dtype",
           [options](std::string const& name) {
               options->dtype = name == "f32"   ? Dtype::F32
                                : name == "f16" ? Dtype::F16
                                                : Dtype::Bf16;
           },
           "of keys and values; bf16")
        ->check(CLI::IsMember({"f32", "f16", "bf16"}));
    app.add_option("--policy", options->request.name, "what keeps tokens; auto");
    add_policy_flags(app, options->request);
    app.callback([options] { check_plan(*options); });
    return [=, &context]() -> Result<Output> { return plan(context, *options); };
}

}  // namespace dkv::cli
