// The setup function of each command, in files of their names. commands.cc lists them.
#pragma once

#include "cli/command.h"

namespace dkv::cli {

Run setup_status(CLI::App& app, Context const& context);
Run setup_instances(CLI::App& app, Context const& context);
Run setup_sessions(CLI::App& app, Context const& context);
Run setup_trace(CLI::App& app, Context const& context);
Run setup_watch(CLI::App& app, Context const& context);
Run setup_savings(CLI::App& app, Context const& context);
Run setup_policy(CLI::App& app, Context const& context);
Run setup_inspect(CLI::App& app, Context const& context);
Run setup_ls(CLI::App& app, Context const& context);
Run setup_verify(CLI::App& app, Context const& context);
Run setup_prune(CLI::App& app, Context const& context);
Run setup_compact(CLI::App& app, Context const& context);
Run setup_convert(CLI::App& app, Context const& context);
Run setup_llama(CLI::App& app, Context const& context);
Run setup_sweep(CLI::App& app, Context const& context);
Run setup_plan(CLI::App& app, Context const& context);
Run setup_diff(CLI::App& app, Context const& context);
Run setup_keys(CLI::App& app, Context const& context);
Run setup_doctor(CLI::App& app, Context const& context);
Run setup_config(CLI::App& app, Context const& context);
Run setup_serve(CLI::App& app, Context const& context);
Run setup_detach(CLI::App& app, Context const& context);
Run setup_stop(CLI::App& app, Context const& context);
Run setup_calibrate(CLI::App& app, Context const& context);
Run setup_certify(CLI::App& app, Context const& context);
Run setup_capture(CLI::App& app, Context const& context);
Run setup_report(CLI::App& app, Context const& context);
Run setup_eval(CLI::App& app, Context const& context);
Run setup_profile(CLI::App& app, Context const& context);
Run setup_version(CLI::App& app, Context const& context);
Run setup_completion(CLI::App& app, Context const& context);

}  // namespace dkv::cli
