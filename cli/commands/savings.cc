#include "cli/render/savings.h"

#include "cli/commands/all.h"
#include "cli/render/json.h"

namespace dkv::cli {

Run setup_savings(CLI::App& /*app*/, Context const& context) {
    return [&context]() -> Result<Output> {
        auto const controller = DKV_TRY(context.connect());
        auto const savings = DKV_TRY(controller->savings());
        return Output{savings_text(savings, context.style()), to_json(savings)};
    };
}

}  // namespace dkv::cli
