#include "cli/commands/all.h"
#include "cli/ids.h"
#include "cli/render/text.h"

namespace dkv::cli {

Run setup_detach(CLI::App& app, Context const& context) {
    auto instance = std::make_shared<std::string>();
    app.add_option("ID", *instance, "the engine, as dkv instances shows it")
        ->required()
        ->check(id_validator());
    return [&context, instance]() -> Result<Output> {
        auto const id = DKV_TRY(parse_id(*instance));
        auto const controller = DKV_TRY(context.connect());
        DKV_TRY(controller->detach(id));
        return Output{"Engine " + hex_id(id) +
                          " is detached: its memory is unmapped here. If it lives, it attaches "
                          "again.\n",
                      {{"detached", hex_id(id)}}};
    };
}

}  // namespace dkv::cli
