#include "cli/render/status.h"

#include "cli/commands/all.h"
#include "cli/render/json.h"

namespace dkv::cli {

Run setup_status(CLI::App& app, Context const& context) {
    auto csv = std::make_shared<bool>(false);
    app.add_flag("--csv", *csv, "a line for all engines and one for each, for spreadsheets");
    return [&context, csv]() -> Result<Output> {
        if (*csv && context.globals.json)
            return Error{ErrorCode::InvalidArgument, "--csv and --json: choose one"};
        auto const controller = DKV_TRY(context.connect());
        auto const status = DKV_TRY(controller->status());
        auto const instances = DKV_TRY(controller->instances());
        return Output{
            *csv ? status_csv(status, instances) : status_text(status, instances, context.style()),
            {{"sidecar", to_json(status)}, {"instances", to_json(instances.instances)}}};
    };
}

}  // namespace dkv::cli
