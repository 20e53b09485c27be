#include "cli/render/instances.h"

#include "cli/commands/all.h"
#include "cli/render/json.h"

namespace dkv::cli {

Run setup_instances(CLI::App& /*app*/, Context const& context) {
    return [&context]() -> Result<Output> {
        auto const controller = DKV_TRY(context.connect());
        auto const list = DKV_TRY(controller->instances());
        return Output{instances_text(list, context.style()),
                      {{"instances", to_json(list.instances)}}};
    };
}

}  // namespace dkv::cli
