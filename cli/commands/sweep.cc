#include "cli/render/sweep.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/commands/all.h"
#include "cli/render/text.h"
#include "cli/saved/open_flags.h"
#include "cli/saved/paths.h"
#include "cli/saved/progress_bar.h"
#include "cli/saved/shard.h"
#include "cli/saved/sweep/config.h"
#include "cli/saved/sweep/results.h"
#include "cli/text_file.h"
#include "sidecar/config/policy_option.h"

namespace dkv::cli {
namespace {

struct SweepOptions {
    std::vector<std::string> files;
    std::string task;
    bool recursive = false;
    std::string config;
    std::string output;
    std::string csv;
    bool no_error = false;
    std::string shard = "0/1";
    Grid grid;
    OpenOptions open;
};

/// What is to be done, out of the flags and the configuration.
struct SweepWork {
    std::vector<SweepFile> files;
    std::vector<std::string> compacted;  ///< Passed over: tokens are missing from them.
    std::vector<GridPoint> points;
    std::string output;
    std::string csv;
    bool with_error = true;
    Shard shard;
};

/// The flags go before the file.
constexpr auto kFillIn = [](char const*, auto& mine, auto const& others) {
    if (mine.empty()) mine = others;
};

/// Compacted files lie beside whole ones, and `*.safetensors` names both.
void add(SweepWork& work, SweepFile file, OpenOptions const& open) {
    auto const cache = open_cache(file.path, open);
    if (cache && !cache.value()->facts().is_whole())
        work.compacted.push_back(file.path);
    else
        work.files.push_back(std::move(file));
}

Result<SweepWork> work_of(SweepOptions const& options) {
    SweepConfig config;
    if (!options.config.empty()) config = DKV_TRY(read_sweep_config(options.config));
    auto const shard = DKV_TRY(parse_shard(options.shard));
    SweepWork work{.files = {},
                   .compacted = {},
                   .points = {},
                   .output = options.output.empty() ? config.output : options.output,
                   .csv = options.csv.empty() ? config.csv : options.csv,
                   .with_error = !options.no_error && config.error.value_or(true),
                   .shard = shard};
    auto grid = options.grid;
    kFillIn("policies", grid.policies, config.grid.policies);
    bool sized = false;
    each_size([&sized](char const*, auto const& values) { sized = sized || !values.empty(); },
              grid);
    if (!sized) each_size(kFillIn, grid, config.grid);
    each_number(kFillIn, grid, config.grid);
    each_of_profile(kFillIn, grid, config.grid);
    work.points = DKV_TRY(grid_points(grid));

    if (!options.files.empty()) config.files.clear();
    for (auto const& path : options.files)
        config.files.push_back({path, options.task});
    for (auto const& file : config.files) {
        auto const found = DKV_TRY(find_inputs({file.path}, options.recursive, options.open));
        for (auto const& input : found.files)
            if (work.shard.has(input.path))
                add(work, {input.path.string(), file.task}, options.open);
    }
    if (!config.files.empty() && !work.shard.is_all()) return work;  // A shard may have none.
    if (work.files.empty() && !work.compacted.empty())
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("{}: tokens are missing already: a sweep needs whole caches",
                                 work.compacted.front())};
    if (work.files.empty()) return Error{ErrorCode::InvalidArgument, "a sweep needs files"};
    return work;
}

class SweepRun {
public:
    SweepRun(Context const& context, SweepWork const& work, OpenOptions const& open)
        : context_(context), work_(work), open_(open), bar_(context, sizes_of(work.files)) {}

    Result<Output> run() {
        for (auto const& path : work_.compacted)
            *context_.environment.err << fmt::format(
                "dkv: {}: passed over: tokens are missing already, and a sweep needs whole "
                "caches\n",
                one_line(path));
        if (!work_.output.empty()) results_ = DKV_TRY(ResultsFile::open(work_.output));
        auto const progress = progress_of(bar_, context_);
        for (std::size_t index = 0; index < work_.files.size(); ++index) {
            auto const done = file(index, progress);
            bar_.ended(index);
            if (done) continue;
            if (auto const end = final_error(done.error())) return *end;
            ++failed_;
            bar_.print(*context_.environment.err, "dkv: " + one_line(done.error().message) + "\n");
        }
        if (!work_.csv.empty()) DKV_TRY(write_text_file(work_.csv, csv_text(rows_)));
        return output();
    }

private:
    /// What ends the whole sweep: it was told to, or there was but this file.
    std::optional<Error> final_error(Error const& error) const {
        if (error.code == ErrorCode::Cancelled && results_)
            return Error{error.code, fmt::format("{}; the same command goes on from {}",
                                                 error.message, work_.output)};
        if (error.code == ErrorCode::Cancelled || work_.files.size() == 1 || write_failed_)
            return error;
        return std::nullopt;
    }

    Json const* known_row(SweepFile const& file, std::string const& print, Json const& asked) {
        return results_ ? results_->find(file, print, asked, work_.with_error) : nullptr;
    }

    Result<void> file(std::size_t index, offline::Progress const& progress) {
        auto const& file = work_.files[index];
        if (progress.stopped()) return offline::interrupted();
        auto const print = DKV_TRY(fingerprint(file.path));
        std::vector<GridPoint const*> missing;
        std::vector<Json> rows(work_.points.size());
        for (std::size_t point = 0; point < rows.size(); ++point) {
            if (auto const* const row = known_row(file, print, work_.points[point].asked))
                rows[point] = *row;
            else
                missing.push_back(&work_.points[point]);
        }
        reused_ += rows.size() - missing.size();
        if (!missing.empty()) {
            auto computed = compute(index, print, missing, progress);
            if (!computed) return naming(file.path, computed.error());
            auto fresh = std::move(computed).value();
            computed_ += fresh.size();
            if (results_) {
                write_failed_ = true;
                DKV_TRY(results_->append(fresh));
                write_failed_ = false;
            }
            auto next = fresh.begin();
            for (auto& row : rows)
                if (row.is_null()) row = std::move(*next++);
        }
        rows_.insert(rows_.end(), rows.begin(), rows.end());
        return {};
    }

    Result<std::vector<Json>> compute(std::size_t index,
                                      std::string const& print,
                                      std::vector<GridPoint const*> const& points,
                                      offline::Progress const& progress) {
        auto const cache = DKV_TRY(open_cache(work_.files[index].path, open_));
        std::vector<PolicyRequest> requests;
        for (auto const* const point : points)
            requests.push_back(point->request);
        offline::Progress const here{
            .advance = [&](std::size_t, std::uint64_t done,
                           std::uint64_t total) { progress.report(index, done, total); },
            .stop = progress.stop};
        auto const swept =
            DKV_TRY(offline::sweep(*backend_, *cache, requests, work_.with_error, here));
        std::vector<Json> rows;
        for (std::size_t at = 0; at < swept.size(); ++at)
            rows.push_back(row_json(work_.files[index], print, cache->facts(), *points[at],
                                    work_.with_error, swept[at]));
        return rows;
    }

    Output output() const {
        auto const& shard = work_.shard;
        auto text =
            shard.is_all() ? std::string() : fmt::format("shard {}/{}: ", shard.index, shard.count);
        text += fmt::format("{}, {} each: {} computed, {} known before\n",
                            counted(work_.files.size() - failed_, "file"),
                            counted(work_.points.size(), "point"), computed_, reused_);
        if (!rows_.empty()) text += "\n" + sweep_text(rows_, context_.style());
        bool const none_good =
            !work_.files.empty() && std::ranges::all_of(rows_, [](Json const& row) {
                return !row.value("error", "").empty();
            });
        return {text,
                {{"files", work_.files.size()},
                 {"shard",
                  shard.is_all() ? Json() : Json(fmt::format("{}/{}", shard.index, shard.count))},
                 {"files_failed", failed_},
                 {"files_compacted", work_.compacted},
                 {"points", work_.points.size()},
                 {"computed", computed_},
                 {"known_before", reused_},
                 {"output", work_.output.empty() ? Json() : Json(work_.output)},
                 {"rows", rows_}},
                failed_ > 0 || none_good ? kExitFailed : kExitOk};
    }

    Context const& context_;
    SweepWork const& work_;
    OpenOptions const& open_;
    ProgressBar bar_;
    std::unique_ptr<Backend> backend_ = make_cpu_backend();
    std::optional<ResultsFile> results_;
    bool write_failed_ = false;
    std::vector<Json> rows_;  ///< In the order of files and points, whenever they were computed.
    std::size_t computed_ = 0;
    std::size_t reused_ = 0;
    std::size_t failed_ = 0;
};

Result<Output> sweep(Context const& context, SweepOptions const& options) {
    auto const work = DKV_TRY(work_of(options));
    return SweepRun(context, work, options.open).run();
}

void add_grid_flags(CLI::App& app, Grid& grid) {
    app.add_option("--policy", grid.policies, "policies, with commas between them")
        ->delimiter(',')
        ->type_name("LIST")
        ->group("Grid");
    each_field([&app](char const* name,
                      auto& values) { add_option(app, parameter(name), values)->group("Grid"); },
               grid);
}

}  // namespace

Run setup_sweep(CLI::App& app, Context const& context) {
    auto options = std::make_shared<SweepOptions>();
    app.add_option("FILE", options->files, "saved caches, and folders of them");
    app.add_option("-o,--output", options->output,
                   "results, a JSON object per line; what is there already is not computed again")
        ->type_name("FILE");
    app.add_option("--csv", options->csv, "the same as a table, with means over the layers")
        ->type_name("FILE");
    app.add_option("--config", options->config,
                   "a TOML file with files, policies, capacities …; flags go before it")
        ->type_name("FILE");
    app.add_option("--task", options->task, "what the prompts of FILE are, for reports")
        ->type_name("NAME");
    app.add_flag("--no-error", options->no_error,
                 "leave out the error of the attention's output, which costs most");
    app.add_flag("-r,--recursive", options->recursive, "also what is in folders of folders");
    add_shard_flag(app, options->shard);
    add_grid_flags(app, options->grid);
    add_open_flags(app, options->open);
    return [=, &context]() -> Result<Output> { return sweep(context, *options); };
}

}  // namespace dkv::cli
