#include "cli/saved/store/prune.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <set>
#include <tuple>

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <system_error>

#include "cli/saved/offline/in_place.h"
#include "cli/saved/offline/sweep.h"
#include "cli/saved/store/store.h"

namespace dkv::cli {
namespace {

using What = PrunedCache::What;

constexpr double kShares[] = {0.5, 0.25, 0.125};  // Of a prompt's tokens, the mildest first.

/// One size of one cache.
struct Level {
    double share = 1;
    std::uint64_t freed = 0;  ///< About.
    std::optional<double> damage;
};

struct Candidate {
    StoredCache cache;
    offline::FileStamp stamp;
};

Result<void> refuse_size(PolicyRequest const& policy) {
    char const* const size = policy.capacity    ? "--capacity"
                             : policy.ratio     ? "--ratio"
                             : policy.bytes     ? "--bytes"
                             : policy.keep_mass ? "--keep-mass"
                                                : nullptr;
    if (size == nullptr) return {};
    return Error{
        ErrorCode::InvalidArgument,
        fmt::format("{}: prune chooses each cache's size by its loss; leave it out", size)};
}

/// Whether a later pass of a watch may succeed with the same file.
bool may_pass(ErrorCode code) {
    return code == ErrorCode::Io || code == ErrorCode::LimitExceeded || code == ErrorCode::Internal;
}

/// A folder's lock is a descriptor, and the first limit of many systems is 1,024: up to the last.
void allow_descriptors() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);  // Where it is refused a lock says so.
}

class Prune {
public:
    Prune(PruneRequest const& request,
          offline::Progress const& progress,
          std::function<void(PrunedCache const&)> const& tell,
          PruneMemory& memory)
        : request_(request), progress_(progress), tell_(tell), memory_(memory) {}

    Result<PruneTotals> run() {
        allow_descriptors();
        forget_what_went();
        DKV_TRY(lock());
        DKV_TRY(scan());
        totals_.bytes_after = totals_.bytes_before;
        for (auto& candidate : candidates_) {
            if (!is_over()) break;
            if (progress_.stopped()) return offline::interrupted();
            if (!candidate.cache.whole) continue;
            if (was_left(candidate))
                ++totals_.left;
            else
                DKV_TRY(compact(candidate));
        }
        for (auto const& candidate : candidates_)
            if (request_.delete_last && is_over()) remove(candidate);
        memory_.begun = true;
        return totals_;
    }

private:
    bool is_over() const noexcept { return totals_.bytes_after > request_.budget; }

    /// A folder that was removed and made again is another, and its lock is not held.
    void forget_what_went() {
        std::erase_if(memory_.locks, [](auto const& entry) {
            struct stat held {
            }, there{};
            return ::fstat(entry.second.get(), &held) != 0 ||
                   ::stat(entry.first.c_str(), &there) != 0 || held.st_dev != there.st_dev ||
                   held.st_ino != there.st_ino;
        });
        std::erase_if(memory_.left, [](auto const& entry) {
            std::error_code ignored;
            return !std::filesystem::exists(entry.first, ignored);
        });
    }

    Result<void> lock() {
        for (auto const& folder : request_.folders)
            DKV_TRY(lock(folder));
        return {};
    }

    Result<void> lock(std::filesystem::path const& folder) {
        std::error_code error;
        auto real = std::filesystem::canonical(folder, error);
        if (error) real = folder;
        auto& locks = memory_.locks;
        if (!locks.contains(real)) locks.emplace(real, DKV_TRY(offline::lock_folder(folder)));
        return {};
    }

    /// Every folder of a cache is locked, the ones below the arguments, too. A cache that two
    /// arguments lead to is one.
    Result<InputFiles> find() {
        InputFiles found;
        for (auto const& folder : request_.folders) {
            auto below = find_inputs({folder}, request_.recursive, request_.compact.open);
            if (below)
                std::ranges::move(below.value().files, std::back_inserter(found.files));
            else if (!request_.may_be_empty || below.error().code != ErrorCode::NotFound)
                return below.error();
        }
        std::set<std::filesystem::path> places;
        std::erase_if(found.files, [&](InputFile const& file) {
            return !places.insert(place_of(file.path)).second;
        });
        std::set<std::filesystem::path> folders;
        for (auto const& place : places)
            folders.insert(place.parent_path());
        for (auto const& folder : folders) {
            auto const locked = lock(folder);
            if (locked) continue;
            // Refused at the start; a watch goes on without a folder that came or went meanwhile.
            if (!memory_.begun) return locked.error();
            std::erase_if(found.files, [&](InputFile const& file) {
                return place_of(file.path).parent_path() == folder;
            });
        }
        return found;
    }

    /// Counts everything; what may be touched becomes a candidate.
    Result<void> scan() {
        auto const& open = request_.compact.open;
        auto const inputs = DKV_TRY(find());
        auto const settled = offline::now_ns() - std::chrono::nanoseconds(request_.settle).count();
        for (auto& cache : list_store(inputs, open)) {
            ++totals_.caches;
            totals_.bytes_before += cache.seen.bytes;
            std::error_code ignored;
            auto const stamp = offline::stamp_of(cache.path);
            if (cache.seen.written_ns > settled)
                ++totals_.fresh;
            else if (!cache.error.empty())
                leave(cache, stamp, cache.error);
            else if (!is_writable(cache.format))
                leave(cache, stamp, fmt::format("dkv does not write {}", name_of(cache.format)));
            else if (!stamp || !std::filesystem::is_regular_file(
                                   std::filesystem::symlink_status(cache.path, ignored)))
                leave(cache, stamp, "not a regular file");
            else if (stamp.value().written_ns != cache.seen.written_ns ||
                     stamp.value().bytes != cache.seen.bytes)
                ++totals_.fresh;  // Since it was listed.
            else
                candidates_.push_back({std::move(cache), stamp.value()});
        }
        if (!request_.dry_run)
            for (auto const& [folder, lock] : memory_.locks)
                offline::remove_leftovers(folder);
        std::ranges::sort(candidates_, [](Candidate const& a, Candidate const& b) {
            return std::tuple(a.stamp.written_ns, b.stamp.bytes, a.cache.path) <
                   std::tuple(b.stamp.written_ns, a.stamp.bytes, b.cache.path);
        });
        return {};
    }

    bool was_left(Candidate const& candidate) const {
        auto const found = memory_.left.find(candidate.cache.path);
        return found != memory_.left.end() && found->second.tried &&
               found->second.stamp == candidate.stamp;
    }

    void leave(StoredCache const& cache, Result<offline::FileStamp> const& stamp, std::string why) {
        ++totals_.left;
        if (stamp) {
            auto& known = memory_.left[cache.path];
            if (known.stamp == stamp.value() && known.why == why) return;
            known = {.stamp = stamp.value(), .why = why};
        }
        tell_({.path = cache.path,
               .bytes_before = cache.seen.bytes,
               .bytes_after = cache.seen.bytes,
               .why = std::move(why)});
    }

    /// The sizes that a cache can have. Errors: those of the file; of a policy that cannot work on
    /// it.
    Result<std::vector<Level>> measure(Candidate const& candidate) {
        auto const cache = DKV_TRY(open_cache(candidate.cache.path, request_.compact.open));
        std::vector<PolicyRequest> points;
        for (double const share : kShares)
            points.emplace_back(request_.compact.policy).ratio = share;
        offline::Progress const quiet{.advance = {}, .stop = progress_.stop};
        std::vector<Level> levels;
        std::string why;
        auto const rows = DKV_TRY(offline::sweep(*backend_, *cache, points, false, quiet));
        for (std::size_t at = 0; at < rows.size(); ++at) {
            auto const& row = rows[at];
            if (!row.error.empty() || row.bytes_kept >= row.bytes_full) {
                why = row.error;
                continue;
            }
            double const kept =
                static_cast<double>(row.bytes_kept) / static_cast<double>(row.bytes_full);
            Level level{.share = kShares[at],
                        .freed = static_cast<std::uint64_t>(
                            (1 - kept) * static_cast<double>(candidate.cache.seen.bytes -
                                                             cache->facts().sliding_bytes)),
                        .damage = std::nullopt};
            if (!row.damage.empty())
                level.damage = std::accumulate(row.damage.begin(), row.damage.end(), 0.0) /
                               static_cast<double>(row.damage.size());
            levels.push_back(level);
        }
        if (levels.empty())
            return Error{ErrorCode::InvalidArgument,
                         why.empty() ? "nothing can be left out of it" : why};
        return levels;
    }

    /// The mildest that is enough, or else the smallest that is allowed. Errors: why none is.
    Result<Level> choose(std::vector<Level> const& levels) const {
        if (!levels.front().damage) {
            if (request_.unmeasured) return levels.front();
            return Error{ErrorCode::InvalidArgument,
                         "its loss is not known, since there is no profile of its model (dkv "
                         "calibrate makes one); --unmeasured compacts it to a half"};
        }
        std::optional<Level> chosen;
        for (auto const& level : levels) {
            if (!level.damage || *level.damage > request_.damage_max) break;
            chosen = level;
            if (level.freed >= totals_.bytes_after - request_.budget) break;
        }
        if (!chosen)
            return Error{
                ErrorCode::InvalidArgument,
                fmt::format("the damage of keeping {} of its tokens is {:.3f}, above "
                            "--damage-max {}",
                            levels.front().share, *levels.front().damage, request_.damage_max)};
        return *chosen;
    }

    Result<void> compact(Candidate& candidate) {
        auto const done = try_compact(candidate);
        if (!done && done.error().code == ErrorCode::Cancelled) return done.error();
        if (!done) {
            leave(candidate.cache, candidate.stamp, done.error().message);
            memory_.left[candidate.cache.path].tried = !may_pass(done.error().code);
        }
        return {};
    }

    Result<void> try_compact(Candidate& candidate) {
        auto const level = DKV_TRY(choose(DKV_TRY(measure(candidate))));
        auto request = request_.compact;
        request.input = candidate.cache.path;
        request.policy.ratio = level.share;
        request.dry_run = request_.dry_run;
        offline::Progress const quiet{.advance = {}, .stop = progress_.stop};
        auto const outcome =
            DKV_TRY(offline::compact_in_place(std::move(request), candidate.stamp, quiet));
        auto const before = candidate.cache.seen.bytes;
        candidate.cache.seen.bytes = outcome.file_bytes_after;
        if (!request_.dry_run) candidate.stamp = DKV_TRY(offline::stamp_of(candidate.cache.path));
        totals_.bytes_after -= before - outcome.file_bytes_after;
        ++totals_.compacted;
        if (level.damage) {
            totals_.damage_sum += *level.damage;
            totals_.damage_worst = std::max(totals_.damage_worst, *level.damage);
            ++totals_.measured;
        }
        tell_({.path = candidate.cache.path,
               .what = What::Compacted,
               .bytes_before = before,
               .bytes_after = outcome.file_bytes_after,
               .share = level.share,
               .damage = level.damage});
        return {};
    }

    void remove(Candidate const& candidate) {
        auto const now = offline::stamp_of(candidate.cache.path);
        if (!now || now.value() != candidate.stamp)
            return leave(candidate.cache, candidate.stamp, "another program wrote to it meanwhile");
        std::error_code error;
        if (!request_.dry_run) std::filesystem::remove(candidate.cache.path, error);
        if (error) return leave(candidate.cache, now, error.message());
        totals_.bytes_after -= candidate.cache.seen.bytes;
        ++totals_.deleted;
        tell_({.path = candidate.cache.path,
               .what = What::Deleted,
               .bytes_before = candidate.cache.seen.bytes,
               .bytes_after = 0});
    }

    PruneRequest const& request_;
    offline::Progress const& progress_;
    std::function<void(PrunedCache const&)> const& tell_;
    std::unique_ptr<Backend> backend_ = make_cpu_backend();
    PruneMemory& memory_;
    std::vector<Candidate> candidates_;
    PruneTotals totals_;
};

}  // namespace

Result<PruneTotals> prune(PruneRequest const& request,
                          offline::Progress const& progress,
                          std::function<void(PrunedCache const&)> const& tell,
                          PruneMemory& memory) {
    DKV_TRY(refuse_size(request.compact.policy));
    DKV_TRY(resolve(request.compact.policy, ""));  // Else every cache would say it.
    return Prune(request, progress, tell, memory).run();
}

}  // namespace dkv::cli
