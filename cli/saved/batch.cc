#include "cli/saved/batch.h"

#include "cli/render/text.h"

namespace dkv::cli {

Batch::Batch(Context const& context, std::vector<std::uint64_t> sizes, bool dry_run)
    : context_(context),
      dry_run_(dry_run),
      single_(sizes.size() == 1),
      bar_(context, std::move(sizes)) {}

void Batch::ended(std::size_t file, std::filesystem::path const& input, Outcome const& outcome) {
    ++total_.files;
    bar_.ended(file);
    if (outcome) {
        total_.add(outcome.value());
        files_.push_back(to_json(outcome.value()));
        if (!context_.globals.json)
            bar_.print(*context_.environment.out,
                       compact_text(outcome.value(), dry_run_, context_.style()));
        return;
    }
    ++total_.failed;
    auto const& error = outcome.error();
    files_.push_back({{"input", input.string()},
                      {"error", {{"code", name_of(error.code)}, {"message", error.message}}}});
    // Those that were stopped are told of once, by the command's own failure.
    if (!single_ && error.code != ErrorCode::Cancelled)
        bar_.print(*context_.environment.err, "dkv: " + one_line(error.message) + "\n");
}

Result<Output> Batch::output(std::vector<Outcome> const& outcomes) {
    for (auto const& outcome : outcomes)
        if (!outcome && (single_ || outcome.error().code == ErrorCode::Cancelled))
            return outcome.error();
    total_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    Output output;
    if (!single_) output.text = total_text(total_, dry_run_, context_.style());
    output.json = {{"dry_run", dry_run_}, {"files", files_}, {"total", to_json(total_)}};
    output.exit_code = total_.failed > 0 ? kExitFailed : kExitOk;
    return output;
}

}  // namespace dkv::cli
