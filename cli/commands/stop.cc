#include "cli/commands/all.h"

namespace dkv::cli {

Run setup_stop(CLI::App& /*app*/, Context const& context) {
    return [&context]() -> Result<Output> {
        auto const controller = DKV_TRY(context.connect());
        DKV_TRY(controller->stop());
        return Output{"The sidecar is stopping; engines go on with the caches they have.\n",
                      {{"stopping", true}}};
    };
}

}  // namespace dkv::cli
