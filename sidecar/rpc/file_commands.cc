#include <array>

#include "sidecar/rpc/command.h"
#include "sidecar/rpc/convert.h"

namespace dkv::rpc {
namespace {

Result<std::filesystem::path> absolute(char const* what, std::string const& path) {
    if (path.starts_with('/') && path.find('\0') == std::string::npos)
        return std::filesystem::path(path);
    return Error{ErrorCode::InvalidArgument,
                 std::string(what) + " '" + path + "' is no absolute path"};
}

Result<std::optional<FileFormat>> format_of(std::string const& name) {
    if (name.empty()) return std::optional<FileFormat>();
    if (auto const format = file_format(name)) return format;
    return Error{ErrorCode::InvalidArgument, "no format is called \"" + name + "\""};
}

Result<std::optional<KeyOrder>> order_of(std::string const& name) {
    if (name.empty()) return std::optional<KeyOrder>();
    if (auto const order = key_order(name)) return order;
    return Error{ErrorCode::InvalidArgument, "no order of a key's dims is called \"" + name + "\""};
}

Result<offline::CompactRequest> from_wire(wire::CompactFileT const& message) {
    offline::CompactRequest request;
    request.input = DKV_TRY(absolute("input", message.input));
    request.output = DKV_TRY(absolute("output", message.output));
    request.policy = DKV_TRY(rpc::from_wire(*message.policy));
    request.format = DKV_TRY(format_of(message.format));
    request.open.format = DKV_TRY(format_of(message.input_format));
    request.open.layout = message.layout;
    request.open.kv_heads = message.kv_heads;
    request.open.model = message.model;
    request.open.rope.theta = message.rope_theta;
    request.open.rope.interleaved = message.rope_interleaved;
    request.open.rope.dims = message.rope_dims;
    request.key_order = DKV_TRY(order_of(message.key_order));
    request.verify = message.verify;
    request.keep_queries = message.keep_queries;
    request.fill = message.fill;
    request.dry_run = message.dry_run;
    request.force = message.force;
    return request;
}

std::unique_ptr<wire::FileOutcomeT> to_wire(offline::CompactOutcome const& outcome,
                                            Limits const& limits) {
    auto out = std::make_unique<wire::FileOutcomeT>();
    out->already_there = outcome.already_there;
    out->kept_whole = outcome.kept_whole;
    out->from = name_of(outcome.from);
    out->to = name_of(outcome.to);
    out->geometry = rpc::to_wire(outcome.geometry);
    out->model = outcome.model;
    out->prompt_tokens = outcome.prompt_tokens;
    out->policy = rpc::to_wire(outcome.params);
    if (outcome.lengths.size() <= limits.heads_total_max) out->lengths = outcome.lengths;
    out->mass_kept = outcome.mass_kept;
    out->rows_bytes_before = outcome.rows_bytes_before;
    out->rows_bytes_after = outcome.rows_bytes_after;
    out->file_bytes_before = outcome.file_bytes_before;
    out->file_bytes_after = outcome.file_bytes_after;
    out->seconds = outcome.seconds;
    out->notes = outcome.notes;
    return out;
}

Result<wire::BodyUnion> reply_of(Context& context, std::uint64_t job) {
    auto const facts = DKV_TRY(context.file_jobs.facts(job));
    wire::FileJobT reply;
    reply.job = job;
    reply.ended = facts.outcome.has_value();
    reply.bytes_done = facts.bytes_done;
    reply.bytes_total = facts.bytes_total;
    if (facts.outcome && *facts.outcome)
        reply.outcome = to_wire(facts.outcome->value(), context.config.limits);
    else if (facts.outcome)
        reply.failure = std::make_unique<wire::FailureT>(rpc::to_wire(facts.outcome->error()));
    return body_of(std::move(reply));
}

Reply compact_file(Context& context, Caller const&, wire::CompactFileT const& message) {
    auto const job = DKV_TRY(context.file_jobs.start(DKV_TRY(from_wire(message))));
    return reply_of(context, job);
}

Reply get_file_job(Context& context, Caller const&, wire::GetFileJobT const& message) {
    if (message.stop) DKV_TRY(context.file_jobs.stop(message.job));
    return reply_of(context, message.job);
}

constexpr std::array kFileCommands{
    command<wire::CompactFileT, compact_file>("CompactFile", Reach::Local),
    command<wire::GetFileJobT, get_file_job>("GetFileJob", Reach::Local),
};

}  // namespace

std::span<Command const> file_commands() noexcept {
    return kFileCommands;
}

}  // namespace dkv::rpc
