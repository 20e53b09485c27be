#include "cli/commands/all.h"
#include "cli/doctor/judge.h"
#include "cli/render/findings.h"

namespace dkv::cli {
namespace {

doctor::Sidecar ask_sidecar(Context const& context) {
    doctor::Sidecar answer;
    auto const note = [&](Error const& error) {
        answer.error = error.message;
        answer.wrong_version = error.code == ErrorCode::VersionMismatch;
        return answer;
    };
    auto const controller = context.connect();
    if (!controller) return note(controller.error());
    auto const status = controller.value()->status();
    if (!status) return note(status.error());
    answer.version = status.value().version;
    answer.protocol = status.value().protocol;
    answer.pid = status.value().pid;
    return answer;
}

}  // namespace

Run setup_doctor(CLI::App& /*app*/, Context const& context) {
    return [&context]() -> Result<Output> {
        // Before a controller exists: reading forks, and a fork is best without threads.
        auto readings = context.environment.read_machine(context.globals.endpoint);
        readings.sidecar = ask_sidecar(context);
        auto const findings = doctor::judge(readings);
        bool const failed = doctor::worst(findings) == doctor::Level::Fail;
        return Output{findings_text(findings, context.style()), findings_json(findings),
                      failed ? kExitFailed : kExitOk};
    };
}

}  // namespace dkv::cli
