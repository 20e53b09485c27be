#include "cli/render/status.h"

#include "cli/commands/all.h"
#include "cli/render/json.h"

namespace dkv::cli {

Run setup_status(CLI::App& /*app*/, Context const& context) {
    return [&context]() -> Result<Output> {
        auto const controller = DKV_TRY(context.connect());
        auto const status = DKV_TRY(controller->status());
        auto const instances = DKV_TRY(controller->instances());
        return Output{status_text(status, instances, context.style()),
                      {{"sidecar", to_json(status)}, {"instances", to_json(instances.instances)}}};
    };
}

}  // namespace dkv::cli
