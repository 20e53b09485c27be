#include "cli/saved/store/store.h"

#include <map>

#include <fmt/format.h>

#include "cli/saved/offline/in_place.h"
#include "cli/saved/sweep/results.h"

namespace dkv::cli {
namespace {

/// Of a compacted cache, as far as its file says.
std::string policy_of(CacheFacts const& facts) {
    auto const of = [&](char const* key) {
        auto const found = facts.provenance.find(key);
        return found == facts.provenance.end() ? std::string() : found->second;
    };
    if (facts.is_whole() || of("policy").empty()) return "";
    return of("capacity").empty() ? of("policy") : of("policy") + " " + of("capacity");
}

Result<void> check_contents(std::filesystem::path const& path,
                            OpenOptions const& options,
                            offline::Progress const& progress) {
    auto const cache = DKV_TRY(open_cache(path, options));
    for (std::uint32_t layer = 0; layer < cache->geometry().layers; ++layer) {
        if (progress.stopped()) return offline::interrupted();
        DKV_TRY(cache->verify(layer));
    }
    return {};
}

}  // namespace

std::vector<StoredCache> list_store(InputFiles const& inputs, OpenOptions const& options) {
    std::vector<StoredCache> caches;
    std::map<std::filesystem::path, VerifiedRecord> records;
    for (auto const& input : inputs.files) {
        auto& cache =
            caches.emplace_back(StoredCache{.path = input.path, .seen = seen_file(input.path)});
        auto const place = place_of(input.path);
        auto const folder = place.parent_path();
        auto record = records.find(folder);
        if (record == records.end())
            record = records.emplace(folder, VerifiedRecord::read(folder)).first;
        auto const name = place.filename().string();
        cache.verified = record->second.state(name, cache.seen);
        if (auto const* const verdict = record->second.of(name)) cache.verified_ns = verdict->at_ns;
        auto const file = open_cache(input.path, options);
        if (!file) {
            cache.error = file.error().message;
            continue;
        }
        auto const& facts = file.value()->facts();
        cache.format = facts.format;
        cache.model = facts.model;
        cache.prompt_tokens = facts.kept_of > 0 ? facts.kept_of : facts.prompt_tokens;
        cache.whole = facts.is_whole();
        cache.policy = policy_of(facts);
    }
    return caches;
}

Result<void> verify_stored(std::filesystem::path const& path,
                           OpenOptions const& options,
                           VerifiedRecord& record,
                           offline::Progress const& progress) {
    Verdict verdict{.seen = seen_file(path), .good = true, .at_ns = offline::now_ns()};
    auto const name = place_of(path).filename().string();
    auto const* const before = record.of(name);
    bool const known =
        before != nullptr && before->seen == verdict.seen && !before->fingerprint.empty();
    auto checked = check_contents(path, options, progress);
    if (!checked && checked.error().code == ErrorCode::Cancelled) return checked;
    auto const print = fingerprint(path);
    if (checked && !print) checked = print.error();
    if (print) verdict.fingerprint = print.value();
    bool const is_other = known && print && before->fingerprint != verdict.fingerprint;
    if (is_other && (checked || checked.error().code != ErrorCode::CorruptData))
        checked =
            corrupt(fmt::format("{}: its bytes are not those that were verified, and its time "
                                "is the same: {} then, {} now",
                                path.string(), before->fingerprint, verdict.fingerprint));
    // What could not be read, or not without a flag, was not found to be damaged.
    if (!checked && checked.error().code != ErrorCode::CorruptData) return checked;
    if (!checked) {
        // It is told of until the file is replaced: what it should be stays in the record.
        verdict.good = false;
        verdict.fingerprint = known ? before->fingerprint : "";
    }
    record.set(name, std::move(verdict));
    return checked;
}

}  // namespace dkv::cli
