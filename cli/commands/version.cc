#include "protocol/base/version.h"

#include <fmt/format.h>

#include "cli/commands/all.h"
#include "cli/render/text.h"
#include "protocol/schema/envelope.h"
#include "protocol/sdk/dkv.h"

namespace dkv::cli {
namespace {

/// A missing sidecar is not a failure: the versions of dkv itself are still an answer.
Result<Output> show(Context const& context) {
    Output output;
    output.text =
        fmt::format("dkv {}\nprotocol {}\nC API {}\n", kVersion, kProtocolVersion, DKV_API_VERSION);
    output.json = {{"dkv", kVersion},
                   {"protocol", kProtocolVersion},
                   {"api", DKV_API_VERSION},
                   {"sidecar", nullptr}};
    auto const controller = DKV_TRY(context.connect());
    auto const status = controller->status();
    if (status) {
        output.text +=
            fmt::format("sidecar {}, protocol {}, at {}\n", one_line(status.value().version),
                        status.value().protocol, context.globals.endpoint);
        output.json["sidecar"] = {{"version", status.value().version},
                                  {"protocol", status.value().protocol},
                                  {"endpoint", context.globals.endpoint}};
        return output;
    }
    Error const& error = status.error();
    output.text += "sidecar none: " + one_line(error.message) + "\n";
    output.json["sidecar_error"] = {{"code", name_of(error.code)}, {"message", error.message}};
    if (error.code == ErrorCode::VersionMismatch) output.exit_code = kExitVersion;
    return output;
}

}  // namespace

Run setup_version(CLI::App& /*app*/, Context const& context) {
    return [&context] { return show(context); };
}

}  // namespace dkv::cli
