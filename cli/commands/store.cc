// dkv ls, verify and prune: folders of saved caches.
#include "cli/render/store.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <tuple>

#include <fmt/format.h>

#include "cli/commands/all.h"
#include "cli/finite.h"
#include "cli/render/text.h"
#include "cli/saved/offline/in_place.h"
#include "cli/saved/open_flags.h"
#include "cli/saved/paths.h"
#include "cli/saved/progress_bar.h"
#include "cli/saved/store/prune.h"
#include "cli/saved/store/store.h"
#include "cli/wait.h"
#include "sidecar/config/policy_flags.h"

namespace dkv::cli {
namespace {

struct StoreOptions {
    std::vector<std::string> paths;
    bool recursive = false;
    OpenOptions open;
};

Result<Output> ls(Context const& context, StoreOptions const& options) {
    auto const inputs = DKV_TRY(find_inputs(options.paths, options.recursive, options.open));
    auto const caches = list_store(inputs, options.open);
    Output output{store_text(caches, offline::now_ns(), context.style()),
                  {{"caches", Json::array()}}};
    for (auto const& cache : caches) {
        output.json["caches"].push_back(to_json(cache));
        if (cache.error.empty()) continue;
        *context.environment.err << "dkv: " + one_line(cache.error) + "\n";
        output.exit_code = kExitFailed;
    }
    return output;
}

using Records = std::map<std::filesystem::path, VerifiedRecord>;

VerifiedRecord& record_of(Records& records, std::filesystem::path const& path) {
    auto const folder = place_of(path).parent_path();
    auto found = records.find(folder);
    if (found == records.end()) found = records.emplace(folder, VerifiedRecord::read(folder)).first;
    return found->second;
}

Result<Output> verify_store(Context const& context, StoreOptions const& options) {
    auto const inputs = DKV_TRY(find_inputs(options.paths, options.recursive, options.open));
    auto const sizes = sizes_of(inputs.files);
    ProgressBar bar(context, sizes);
    auto const progress = progress_of(bar, context);
    Records records;
    Json damaged = Json::array();
    Result<void> stopped;
    std::uint64_t bytes = 0;
    for (std::size_t index = 0; index < inputs.files.size(); ++index) {
        auto const& path = inputs.files[index].path;
        auto const good = verify_stored(path, options.open, record_of(records, path), progress);
        bar.ended(index);
        bytes += sizes[index];
        if (good) continue;
        if (good.error().code == ErrorCode::Cancelled) {
            stopped = good;
            break;
        }
        auto const error = naming(path, good.error());
        bar.print(*context.environment.err, "dkv: " + one_line(error.message) + "\n");
        damaged.push_back({{"file", path.string()}, {"error", error.message}});
    }
    for (auto const& [folder, record] : records)
        if (auto const written = record.write(); !written)
            bar.print(*context.environment.err,
                      "dkv: not remembered: " + one_line(written.error().message) + "\n");
    if (!stopped) return stopped.error();
    auto const count = inputs.files.size();
    return Output{fmt::format("{}, {}: {} damaged\n", counted(count, "cache"), human_bytes(bytes),
                              damaged.size()),
                  {{"caches", count}, {"bytes", bytes}, {"damaged", damaged}},
                  damaged.empty() ? kExitOk : kExitFailed};
}

using std::chrono::milliseconds;

// Passes of a watch lie apart so many times what one took, within kLook and kRestMost.
constexpr int kRest = 9;
constexpr milliseconds kRestMost{60'000};

struct PruneOptions {
    double settle_s = 5;
    bool watch = false;
    PruneRequest request;
};

/// Of a watch: a pass that has nothing new to say.
bool is_news(PruneTotals const& now, PruneTotals const& last) {
    return now.compacted + now.deleted > 0 ||
           std::tie(now.caches, now.bytes_after, now.left, now.fresh) !=
               std::tie(last.caches, last.bytes_after, last.left, last.fresh);
}

Result<Output> prune_store(Context const& context, PruneOptions const& options) {
    auto request = options.request;
    request.settle = milliseconds(static_cast<std::int64_t>(options.settle_s * 1000));
    request.may_be_empty = options.watch;
    auto const print =
        [&](std::string const& text, Json const& json) {
            *context.environment.out
                << (context.globals.json
                        ? json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"
                        : text)
                << std::flush;
        };
    auto const interrupted = context.environment.catch_interrupts();
    offline::Progress const progress{.advance = {}, .stop = interrupted};
    auto const tell = [&](PrunedCache const& cache) {
        print(pruned_text(cache, request.dry_run, context.style()), to_json(cache));
    };
    PruneMemory memory;
    std::optional<PruneTotals> last;
    for (;;) {
        auto const begin = std::chrono::steady_clock::now();
        auto const done = prune(request, progress, tell, memory);
        if (options.watch && !done && done.error().code == ErrorCode::Cancelled) return Output{};
        auto const totals = DKV_TRY(done);
        if (!last || is_news(totals, *last))
            print(prune_total_text(totals, request.budget, request.dry_run, context.style()),
                  to_json(totals));
        last = totals;
        if (!options.watch)
            return Output{"", Json(), totals.bytes_after > request.budget ? kExitFailed : kExitOk};
        auto const took =
            std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - begin);
        if (!wait(context.environment, interrupted, std::clamp(kRest * took, kLook, kRestMost)))
            return Output{};
    }
}

void add_store_flags(CLI::App& app, StoreOptions& options) {
    app.add_option("DIR", options.paths, "folders of saved caches, or single ones")->required();
    app.add_flag("-r,--recursive", options.recursive, "also what is in folders of folders");
    add_open_flags(app, options.open);
}

}  // namespace

Run setup_ls(CLI::App& app, Context const& context) {
    auto options = std::make_shared<StoreOptions>();
    add_store_flags(app, *options);
    return [=, &context]() -> Result<Output> { return ls(context, *options); };
}

Run setup_verify(CLI::App& app, Context const& context) {
    auto options = std::make_shared<StoreOptions>();
    add_store_flags(app, *options);
    return [=, &context]() -> Result<Output> { return verify_store(context, *options); };
}

Run setup_prune(CLI::App& app, Context const& context) {
    auto options = std::make_shared<PruneOptions>();
    auto& request = options->request;
    app.add_option("DIR", request.folders,
                   "folders of saved caches, which are replaced by smaller ones")
        ->required();
    app.add_option("--budget", request.budget, "bytes of all caches together, 10GiB")
        ->required()
        ->transform(CLI::AsSizeValue(false))
        ->type_name("BYTES");
    app.add_option("--damage-max", request.damage_max,
                   "the most that one cache may lose, as dkv sweep measures it [0.1]")
        ->check(CLI::Range(0.0, 1.0))
        ->check(finite())
        ->type_name("SHARE");
    app.add_flag("--unmeasured", request.unmeasured,
                 "also compact, to a half, caches whose loss is not known");
    app.add_flag("--delete", request.delete_last,
                 "delete the oldest where compaction is not enough");
    auto* const dry =
        app.add_flag("--dry-run", request.dry_run, "say what would come of it; change nothing");
    app.add_flag("--watch", options->watch, "go on, and keep the folders within it; until Ctrl-C")
        ->excludes(dry);
    app.add_option("--settle-s", options->settle_s,
                   "leave a file alone for so long after it was written to [5]")
        ->check(CLI::Range(0.0, 86'400.0))
        ->check(finite())
        ->type_name("S");
    app.add_flag("-r,--recursive", request.recursive, "also what is in folders of folders");
    request.compact.policy.name = "auto";
    app.add_option("--policy", request.compact.policy.name, "what keeps tokens [auto]");
    add_policy_flags(app, request.compact.policy);
    add_open_flags(app, request.compact.open);
    return [=, &context]() -> Result<Output> { return prune_store(context, *options); };
}

}  // namespace dkv::cli
