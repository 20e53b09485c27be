#include "cli/commands/all.h"
#include "cli/doctor/bundle.h"
#include "cli/doctor/judge.h"
#include "cli/render/findings.h"
#include "cli/render/json.h"
#include "cli/text_file.h"
#include "protocol/base/version.h"
#include "protocol/schema/envelope.h"

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

/// What the sidecar answers, or why it does not.
template <class Answer>
Json asked(Result<Answer> const& answer) {
    if (!answer) return {{"error", answer.error().message}};
    return to_json(answer.value());
}

Json sidecar_json(Context const& context) {
    auto const controller = context.connect();
    if (!controller) return {{"error", controller.error().message}};
    auto const status = controller.value()->status();
    if (!status) return asked(status);
    return {{"status", asked(status)}, {"savings", asked(controller.value()->savings())}};
}

/// Returns what to say of it.
Result<std::string> write_bundle(Context const& context,
                                 std::string const& path,
                                 std::vector<doctor::Finding> const& findings) {
    auto const variables = doctor::environment_variables();
    Json const all{{"dkv", {{"version", kVersion}, {"protocol", kProtocolVersion}}},
                   {"system", doctor::system_json()},
                   {"findings", findings_json(findings)},
                   {"sidecar", sidecar_json(context)},
                   {"environment", doctor::variables_json(variables)}};
    auto const clean = doctor::Scrubber(variables).clean(all);
    DKV_TRY(
        write_text_file(path, clean.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"));
    return path +
           ": read it before you send it. Secrets of the environment, passwords in URLs and home "
           "folders are taken out; names of models are in it.\n";
}

}  // namespace

Run setup_doctor(CLI::App& app, Context const& context) {
    auto bundle = std::make_shared<std::string>();
    app.add_option("--bundle", *bundle,
                   "also write FILE for a bug report: the findings, the sidecar's answers, the "
                   "surroundings, without secrets")
        ->type_name("FILE");
    return [&context, bundle]() -> Result<Output> {
        // Before a controller exists: reading forks, and a fork is best without threads.
        auto readings = context.environment.read_machine(context.globals.endpoint);
        readings.sidecar = ask_sidecar(context);
        auto const findings = doctor::judge(readings);
        Output output{findings_text(findings, context.style()), findings_json(findings)};
        if (!bundle->empty()) {
            output.text += "\n" + DKV_TRY(write_bundle(context, *bundle, findings));
            output.json["file"] = *bundle;
        }
        bool const failed = doctor::worst(findings) == doctor::Level::Fail;
        if (failed) output.exit_code = kExitFailed;
        return output;
    };
}

}  // namespace dkv::cli
