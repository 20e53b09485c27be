// What an unpatched llama-server needs: its slots' files compacted, or to be started with dkv in
// it.
#include <cstdlib>

#include <fmt/format.h>

#include "cli/commands/all.h"
#include "cli/finite.h"
#include "cli/llama/compact_slot.h"
#include "cli/llama/launch.h"
#include "cli/llama/slot_folder.h"
#include "cli/render/compact.h"
#include "cli/render/text.h"
#include "cli/saved/open_flags.h"
#include "cli/saved/progress_bar.h"
#include "cli/wait.h"
#include "sidecar/config/policy_flags.h"

namespace dkv::cli {
namespace {

using std::chrono::milliseconds;

struct CompactSlotOptions {
    std::string url;
    std::string folder;
    llama::SlotRequest request;
};

struct WatchSlotsOptions {
    std::string folder;
    double settle_s = 5;
    bool once = false;
    llama::FolderRequest request;
};

Json slot_json(llama::SlotOutcome const& outcome) {
    return {{"compact", to_json(outcome.compact)},
            {"restored",
             {{"tokens", outcome.restored.tokens},
              {"bytes", outcome.restored.bytes},
              {"ms", outcome.restored.ms}}},
            {"seen", {{"prompt_n", outcome.seen.computed}, {"cache_n", outcome.seen.cached}}},
            {"original", outcome.original.string()},
            {"original_kept", outcome.original_kept}};
}

Result<Output> compact_slot(Context const& context, CompactSlotOptions const& options) {
    auto request = options.request;
    request.folder = options.folder;
    if (request.name.empty()) request.name = fmt::format("slot-{}.bin", request.slot);
    char const* const key = std::getenv("LLAMA_API_KEY");
    auto const server = DKV_TRY(llama::Server::connect(DKV_TRY(llama::parse_url(options.url)),
                                                       key == nullptr ? "" : key,
                                                       milliseconds(context.globals.timeout_ms)));
    auto outcome = [&] {
        ProgressBar bar(context, {0});
        return llama::compact_slot(server, request, progress_of(bar, context));
    }();
    auto const done = DKV_TRY(std::move(outcome));
    auto text = compact_text(done.compact, false, context.style());
    text += fmt::format(
        "Slot {}: the server restored {} tokens; of a prompt of {} it computed "
        "{} and found {} in the slot.\n",
        request.slot, done.restored.tokens, done.seen.computed + done.seen.cached,
        done.seen.computed, done.seen.cached);
    if (done.original_kept)
        text += fmt::format(
            "The whole slot is in {}: restore it from there, or remove it "
            "(--remove-original).\n",
            one_line(done.original.string()));
    return Output{std::move(text), slot_json(done)};
}

/// The lines of a watch: one for each file, and one whenever the sums change.
class FolderLines {
public:
    FolderLines(Context const& context, llama::FolderRequest const& request)
        : context_(context), request_(request) {}

    void file(llama::FileNews const& news) const {
        auto const& path = news.path.string();
        bool const done = static_cast<bool>(news.outcome);
        if (context_.globals.json) {
            Json line{{"event", done ? "compacted" : "left"}, {"file", path}};
            if (done)
                line["compact"] = to_json(news.outcome.value());
            else
                line["error"] = {{"code", name_of(news.outcome.error().code)},
                                 {"message", news.outcome.error().message}};
            if (done) line["dry_run"] = request_.dry_run;
            print(line);
        } else if (done) {
            print(compact_text(news.outcome.value(), request_.dry_run, context_.style()));
        } else {
            *context_.environment.err
                << "dkv: left as it is: " + one_line(news.outcome.error().message) + "\n";
        }
    }

    void totals(llama::FolderTotals const& totals) {
        if (said_ && totals == last_) return;
        said_ = true;
        last_ = totals;
        if (context_.globals.json)
            return print(Json{{"event", "folder"},
                              {"slots", totals.slots},
                              {"bytes", totals.bytes},
                              {"budget", request_.budget},
                              {"compacted", totals.compacted},
                              {"fresh", totals.fresh},
                              {"left", totals.left}});
        print(fmt::format("{}: {} of {}, {} compacted, {} left as they are, {} being written; {}\n",
                          one_line(request_.folder.string()), counted(totals.slots, "slot file"),
                          human_bytes(totals.bytes), totals.compacted, totals.left, totals.fresh,
                          verdict(totals)));
    }

private:
    std::string verdict(llama::FolderTotals const& totals) const {
        if (totals.bytes <= request_.budget)
            return fmt::format("within {}", human_bytes(request_.budget));
        return fmt::format("{} over {}", human_bytes(totals.bytes - request_.budget),
                           human_bytes(request_.budget));
    }
    void print(Json const& line) const {
        print(line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
    }
    void print(std::string const& text) const { *context_.environment.out << text << std::flush; }

    Context const& context_;
    llama::FolderRequest const& request_;
    llama::FolderTotals last_;
    bool said_ = false;
};

Result<Output> watch_slots(Context const& context, WatchSlotsOptions const& options) {
    auto request = options.request;
    request.folder = options.folder;
    request.settle = milliseconds(static_cast<std::int64_t>(options.settle_s * 1000));
    if (request.compact.open.kv_heads == 0)
        return Error{ErrorCode::InvalidArgument,
                     "slot files do not say how many KV heads the model has: say which it is "
                     "(--model FILE.gguf), or --kv-heads"};
    auto const interrupted = context.environment.catch_interrupts();
    offline::Progress const progress{.advance = {}, .stop = interrupted};
    auto folder = DKV_TRY(llama::SlotFolder::open(request));
    FolderLines lines(context, request);
    // What cannot be watched without end is looked at once: a dry run changes nothing.
    bool const once = options.once || request.dry_run;
    for (;;) {
        auto const totals =
            folder.pass(progress, [&](llama::FileNews const& news) { lines.file(news); });
        if (!totals && totals.error().code == ErrorCode::Cancelled) return Output{};
        lines.totals(DKV_TRY(totals));
        bool const over = totals.value().bytes > request.budget;
        if (once) return Output{"", Json(), over ? kExitFailed : kExitOk};
        if (!wait(context.environment, interrupted, kLook)) return Output{};
    }
}

void add_compact_slot(CLI::App& app, CompactSlotOptions& options) {
    auto& request = options.request;
    app.add_option("URL", options.url, "the server's address, http://127.0.0.1:8080")->required();
    app.add_option("--slot", request.slot, "which slot [0]")->type_name("N");
    app.add_option("--dir", options.folder, "the server's --slot-save-path")
        ->required()
        ->type_name("DIR");
    app.add_option("-o,--output", request.name,
                   "the compacted file's name in DIR [slot-N.bin]; the whole slot is saved beside "
                   "it, as slot-N.full.bin")
        ->type_name("NAME");
    app.add_flag("--force", request.force, "also write over files of these names");
    app.add_flag("--remove-original", request.remove_original,
                 "remove the whole slot's file once the server uses the compacted one");
    request.compact.policy.name = "auto";
    app.add_option("--policy", request.compact.policy.name,
                   "what keeps tokens; llama.cpp saves no queries: reuse (by auto, with "
                   "--profile), keydiff, knorm or streamingllm");
    add_policy_flags(app, request.compact.policy);
    add_model_flags(app, request.compact.open);
}

void add_watch_slots(CLI::App& app, WatchSlotsOptions& options) {
    auto& request = options.request;
    app.add_option("DIR", options.folder,
                   "the server's --slot-save-path; its files are replaced by smaller ones")
        ->required();
    app.add_option("--budget", request.budget, "bytes of all slot files together, 10GiB")
        ->required()
        ->transform(CLI::AsSizeValue(false))
        ->type_name("BYTES");
    app.add_option("--settle-s", options.settle_s,
                   "leave a file alone for so long after it was written to [5]")
        ->check(CLI::Range(0.0, 86'400.0))
        ->check(finite())
        ->type_name("S");
    app.add_flag("--once", options.once, "look once, and end; 1 when it is still over the budget");
    app.add_flag("--dry-run", request.dry_run, "once, and say what would come of it");
    request.compact.policy.name = "auto";
    app.add_option("--policy", request.compact.policy.name, "as for compact-slot");
    add_policy_flags(app, request.compact.policy);
    add_model_flags(app, request.compact.open);
}

void add_run(CLI::App& app) {
    app.fallthrough(false);  // What follows is the program's own.
    app.prefix_command();
    app.footer(
        "dkv [OPTIONS] llama run PROGRAM [ARGUMENT ...]: all that follows run is the program's.");
}

}  // namespace

Run setup_llama(CLI::App& app, Context const& context) {
    auto slot = std::make_shared<CompactSlotOptions>();
    auto watch = std::make_shared<WatchSlotsOptions>();
    app.require_subcommand(1);
    auto* const slot_app = app.add_subcommand(
        "compact-slot", "compact a slot of a running llama-server: it goes on with fewer tokens");
    add_compact_slot(*slot_app, *slot);
    auto* const watch_app =
        app.add_subcommand("watch-slots", "keep a folder of saved slots under a number of bytes");
    add_watch_slots(*watch_app, *watch);
    auto* const run_app = app.add_subcommand(
        "run", "start an unpatched llama-server whose prompts the sidecar compresses");
    add_run(*run_app);
    return [=, &context]() -> Result<Output> {
        if (run_app->parsed()) {
            auto words = run_app->remaining();
            if (words.empty())
                return Error{ErrorCode::InvalidArgument,
                             "which program? dkv llama run llama-server -m model.gguf"};
            return llama::become_preloaded(std::move(words), context.globals.endpoint);
        }
        return slot_app->parsed() ? compact_slot(context, *slot) : watch_slots(context, *watch);
    };
}

}  // namespace dkv::cli
