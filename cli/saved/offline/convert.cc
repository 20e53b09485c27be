#include "cli/saved/offline/convert.h"

#include <chrono>
#include <numeric>

#include <system_error>

#include "cli/saved/formats/write_cache.h"
#include "cli/saved/offline/conversion_notes.h"
#include "protocol/base/version.h"

namespace dkv::offline {
namespace {

Result<void> check_output(ConvertRequest const& request) {
    std::error_code ignored;
    if (std::filesystem::equivalent(request.input, request.output, ignored))
        return Error{ErrorCode::Unsupported,
                     request.output.string() + ": the output cannot be the input"};
    if (!request.force && std::filesystem::exists(request.output, ignored))
        return Error{ErrorCode::AlreadyExists,
                     request.output.string() + " is there already; --force writes over it"};
    return {};
}

FileFormat target_format(ConvertRequest const& request, CacheFacts const& facts) {
    if (request.format) return *request.format;
    return is_writable(facts.format) ? facts.format : FileFormat::Dkv;
}

CacheFacts written_facts(ConvertRequest const& request, CacheFacts facts, FileFormat to) {
    if (request.drop_queries) facts.query_rows = 0;
    if (facts.format != to) {
        facts.provenance.emplace("source", request.input.filename().string());
        facts.provenance.emplace("source_format", facts.format_words);
    }
    facts.provenance.insert_or_assign("dkv", kVersion);
    return facts;
}

Result<CompactOutcome> convert_file(Backend& backend,
                                    ConvertRequest const& request,
                                    Progress const& progress,
                                    std::size_t file) {
    auto const begin = std::chrono::steady_clock::now();
    DKV_TRY(check_output(request));
    auto const cache = DKV_TRY(open_cache(request.input, request.open));
    auto const& facts = cache->facts();
    auto const to = target_format(request, facts);

    WriteRequest writing{.path = request.output,
                         .like = request.input,
                         .format = to,
                         .facts = written_facts(request, facts, to),
                         .key_order = request.key_order,
                         .layer = {},
                         .before_commit = [&] { return cache->check_unchanged(); },
                         .source = cache.get()};
    writing.layer = [&](std::uint32_t index) -> Result<RowsToWrite> {
        if (progress.stopped()) return interrupted();
        if (request.verify) DKV_TRY(cache->verify(index));
        auto layer = DKV_TRY(cache->layer(index));
        auto const layers = facts.geometry.layers;
        progress.report(file, facts.file_bytes * (index + 1) / layers, facts.file_bytes);
        return RowsToWrite{std::move(layer), {}};
    };

    CompactOutcome outcome{.input = request.input,
                           .output = request.output,
                           .kept_whole = !facts.compacted,
                           .from = facts.format,
                           .to = to,
                           .geometry = facts.geometry,
                           .model = facts.model,
                           .prompt_tokens = facts.prompt_tokens,
                           .params = {.name = "fullkv"},
                           .lengths = facts.lengths,
                           .mass_kept = {},
                           .notes = {}};
    outcome.file_bytes_before = facts.file_bytes;
    outcome.file_bytes_after = DKV_TRY(write_cache(backend, writing));
    auto const rows = std::accumulate(facts.lengths.begin(), facts.lengths.end(), std::uint64_t{0});
    outcome.rows_bytes_before = facts.rows_bytes();
    bool const moved = is_llama(to) && is_llama(facts.format);
    outcome.rows_bytes_after =
        rows * (moved ? facts.stored_bytes() : 2 * facts.geometry.row_bytes());
    outcome.notes = conversion_notes(writing, facts.format, false);
    if (request.drop_queries && facts.query_rows > 0)
        outcome.notes.emplace_back("the window's queries were left out");
    outcome.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return outcome;
}

}  // namespace

Result<CompactOutcome> convert(Backend& backend,
                               ConvertRequest const& request,
                               Progress const& progress,
                               std::size_t file) {
    auto outcome = convert_file(backend, request, progress, file);
    if (outcome || outcome.error().message.starts_with(request.output.string())) return outcome;
    return naming(request.input, outcome.error());
}

}  // namespace dkv::offline
