#include "cli/saved/remote.h"

#include <string>

#include <system_error>

#include "cli/wire_policy.h"
#include "protocol/sdk/convert.h"

namespace dkv::cli {
namespace {

using namespace std::chrono_literals;

constexpr std::chrono::milliseconds kAskAgain = 50ms;

std::string absolute_path(std::filesystem::path const& path) {
    std::error_code error;
    auto const absolute = std::filesystem::absolute(path, error);
    return error ? path.string() : absolute.string();
}

std::string format_name(std::optional<FileFormat> format) {
    return format ? std::string(name_of(*format)) : std::string();
}

wire::CompactFileT to_wire(offline::CompactRequest const& request) {
    wire::CompactFileT message;
    message.input = absolute_path(request.input);
    message.output = absolute_path(request.output);
    message.policy = std::make_unique<wire::PolicyT>(cli::to_wire(request.policy));
    message.format = format_name(request.format);
    message.verify = request.verify;
    message.keep_queries = request.keep_queries;
    message.fill = request.fill;
    message.dry_run = request.dry_run;
    message.force = request.force;
    message.input_format = format_name(request.open.format);
    message.layout = request.open.layout;
    message.kv_heads = request.open.kv_heads;
    message.model = request.open.model;
    message.rope_theta = request.open.rope.theta;
    message.rope_interleaved = request.open.rope.interleaved;
    message.rope_dims = request.open.rope.dims;
    if (request.key_order) message.key_order = name_of(*request.key_order);
    return message;
}

/// Errors: CorruptData for an invalid geometry.
Result<Geometry> geometry_of(wire::GeometryT const& facts) {
    auto const number = static_cast<std::uint8_t>(facts.dtype);
    auto const dtype = dtype_from_wire(number);
    if (!dtype)
        return Error{ErrorCode::CorruptData, "the sidecar says that a cache's dtype is " +
                                                 std::to_string(number) + ", which is none"};
    Geometry const geometry{.layers = facts.layers,
                            .q_heads = facts.q_heads,
                            .kv_heads = facts.kv_heads,
                            .head_dim = facts.head_dim,
                            .dtype = *dtype};
    auto const checked = check(geometry);
    if (!checked)
        return Error{ErrorCode::CorruptData, "the sidecar says: " + checked.error().message};
    return geometry;
}

/// Paths are the request's: those that the user gave.
Result<offline::CompactOutcome> outcome_of(offline::CompactRequest const& request,
                                           wire::FileOutcomeT const& facts) {
    offline::CompactOutcome outcome;
    outcome.input = request.input;
    outcome.output = request.output;
    outcome.already_there = facts.already_there;
    outcome.kept_whole = facts.kept_whole;
    outcome.from = file_format(facts.from).value_or(FileFormat::Dkv);
    outcome.to = file_format(facts.to).value_or(FileFormat::Dkv);
    if (facts.geometry) outcome.geometry = DKV_TRY(geometry_of(*facts.geometry));
    outcome.model = facts.model;
    outcome.prompt_tokens = facts.prompt_tokens;
    if (facts.policy) outcome.params = params_of(*facts.policy);
    outcome.lengths = facts.lengths;
    outcome.mass_kept = facts.mass_kept;
    outcome.rows_bytes_before = facts.rows_bytes_before;
    outcome.rows_bytes_after = facts.rows_bytes_after;
    outcome.file_bytes_before = facts.file_bytes_before;
    outcome.file_bytes_after = facts.file_bytes_after;
    outcome.seconds = facts.seconds;
    outcome.notes = facts.notes;
    return outcome;
}

Result<offline::CompactOutcome> compact_one(Context const& context,
                                            sdk::Controller& sidecar,
                                            offline::CompactRequest const& request,
                                            offline::Progress const& progress,
                                            std::size_t file) {
    auto job = DKV_TRY(sidecar.compact_file(to_wire(request)));
    bool told = false;
    while (!job.ended) {
        // The answer to that is not the end: it comes after the layer that is under way.
        bool const stop = progress.stopped() && !told;
        told = told || stop;
        if (!stop) context.environment.pause(kAskAgain);
        job = DKV_TRY(sidecar.file_job(job.job, stop));
        progress.report(file, job.bytes_done, job.bytes_total);
    }
    if (job.outcome) return outcome_of(request, *job.outcome);
    if (job.failure) return sdk::error_of(*job.failure);
    return Error{ErrorCode::CorruptData, "the sidecar says that it ended, and not how"};
}

}  // namespace

Result<std::vector<Result<offline::CompactOutcome>>> compact_remotely(
    Context const& context,
    std::span<offline::CompactRequest const> requests,
    offline::Progress const& progress,
    offline::Ended const& ended) {
    auto const sidecar = DKV_TRY(context.connect());
    std::vector<Result<offline::CompactOutcome>> outcomes;
    for (std::size_t file = 0; file < requests.size(); ++file) {
        outcomes.push_back(progress.stopped()
                               ? Result<offline::CompactOutcome>(offline::interrupted())
                               : compact_one(context, *sidecar, requests[file], progress, file));
        ended(file, outcomes.back());
        auto const& last = outcomes.back();
        // The other engines cannot be asked either.
        if (!last && exit_code_of(last.error().code) == kExitNoSidecar) return last.error();
    }
    return outcomes;
}

}  // namespace dkv::cli
