#include "cli/llama/slot_folder.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <tuple>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <system_error>

#include "cli/saved/formats/llama_file.h"
#include "protocol/container/mapped_file.h"

namespace dkv::llama {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWorkSuffix = ".dkv-compact";

Error io(fs::path const& path, int number) {
    return {ErrorCode::Io, fmt::format("{}: {}", path.string(), std::strerror(number))};
}

/// Hidden, so that neither the server nor the next pass takes it for a slot.
fs::path work_path(fs::path const& path) {
    return path.parent_path() / ("." + path.filename().string() + std::string(kWorkSuffix));
}

bool is_slot_file(fs::path const& path) {
    auto const file = MappedFile::open(path);
    return file && is_llama_file(file.value().bytes());
}

std::int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
}

/// The two names swap their files; where the file system cannot, `from` takes the place of `to`.
/// Returns whether they were swapped.
Result<bool> exchange(fs::path const& from, fs::path const& to) {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0)
        return true;
    if (errno != EINVAL && errno != ENOSYS) return io(to, errno);
    if (::rename(from.c_str(), to.c_str()) != 0) return io(to, errno);
    return false;
}

/// Owner, mode and time of `original`: its server goes on reading it, and age decides what is
/// compacted next.
Result<void> make_alike(fs::path const& path, fs::path const& original) {
    struct stat was {};
    struct stat is {};
    if (::stat(original.c_str(), &was) != 0) return io(original, errno);
    if (::stat(path.c_str(), &is) != 0) return io(path, errno);
    bool const same_owner = was.st_uid == is.st_uid && was.st_gid == is.st_gid;
    if (!same_owner && ::chown(path.c_str(), was.st_uid, was.st_gid) != 0)
        return Error{ErrorCode::PermissionDenied,
                     fmt::format("{}: it is of user {} and group {}, whom a new file cannot be "
                                 "given to: run this as the server's user",
                                 original.string(), was.st_uid, was.st_gid)};
    if (::chmod(path.c_str(), was.st_mode & 07777U) != 0) return io(path, errno);
    timespec const times[] = {was.st_atim, was.st_mtim};
    if (::utimensat(AT_FDCWD, path.c_str(), times, 0) != 0) return io(path, errno);
    return {};
}

}  // namespace

Result<SlotFolder> SlotFolder::open(FolderRequest request) {
    auto const path = request.folder;
    DKV_TRY(resolve(request.compact.policy, ""));  // Else every file would say it.
    UniqueFd lock(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!lock)
        return Error{
            errno == ENOENT || errno == ENOTDIR ? ErrorCode::NotFound : ErrorCode::Io,
            fmt::format("{}: no folder that can be read: {}", path.string(), std::strerror(errno))};
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0)
        return Error{ErrorCode::AlreadyExists,
                     path.string() + ": another dkv llama watch-slots has this folder"};
    SlotFolder folder(std::move(request), std::move(lock));
    folder.remove_leftovers();
    return folder;
}

/// Of a program that was killed: whatever it was, the slot's own name has a whole file.
void SlotFolder::remove_leftovers() const {
    std::error_code ignored;
    for (auto const& entry : fs::directory_iterator(request_.folder, ignored)) {
        auto const name = entry.path().filename().string();
        if (name.starts_with(".") && name.ends_with(kWorkSuffix)) fs::remove(entry.path(), ignored);
    }
}

Result<SlotFolder::Stamp> SlotFolder::stamp_of(fs::path const& path) {
    struct stat facts {};
    if (::lstat(path.c_str(), &facts) != 0) return io(path, errno);
    return Stamp{
        .device = facts.st_dev,
        .inode = facts.st_ino,
        .bytes = static_cast<std::uint64_t>(facts.st_size),
        .written_ns = std::int64_t{facts.st_mtim.tv_sec} * 1'000'000'000 + facts.st_mtim.tv_nsec};
}

/// What a file is by its contents. One that cannot be compacted is told of.
SlotFolder::State SlotFolder::look(fs::path const& path, Tell const& tell) {
    if (!is_slot_file(path)) return State::Other;
    auto const cache = open_cache(path, request_.compact.open);
    if (!cache) {
        tell({path, cache.error()});
        return State::Left;
    }
    return cache.value()->facts().is_whole() ? State::Whole : State::Compacted;
}

/// Counts everything; returns what can be compacted now, in the order to do it.
Result<std::vector<SlotFolder::Slot>> SlotFolder::scan(FolderTotals& totals, Tell const& tell) {
    std::vector<Slot> whole;
    std::map<fs::path, Known> known;
    std::error_code error;
    auto const settled_ns = now_ns() - std::chrono::nanoseconds(request_.settle).count();
    fs::directory_iterator at(request_.folder, error);
    for (; !error && at != fs::directory_iterator(); at.increment(error)) {
        auto const path = at->path();
        std::error_code ignored;
        if (path.filename().string().starts_with(".") || at->is_symlink(ignored) ||
            !at->is_regular_file(ignored))
            continue;
        auto const stamp = stamp_of(path);
        if (!stamp) continue;  // Removed meanwhile.
        auto const before = known_.find(path);
        bool const same = before != known_.end() && before->second.stamp == stamp.value();
        bool const fresh = stamp.value().written_ns > settled_ns;
        if (fresh && !is_slot_file(path)) continue;
        Known now{.stamp = stamp.value(), .state = State::Whole};
        if (!fresh) now.state = same ? before->second.state : look(path, tell);
        if (now.state != State::Other) {
            ++totals.slots;
            totals.bytes += now.stamp.bytes;
        }
        totals.fresh += fresh ? 1 : 0;
        totals.compacted += now.state == State::Compacted ? 1 : 0;
        totals.left += now.state == State::Left ? 1 : 0;
        if (now.state == State::Whole && !fresh) whole.push_back({path, now.stamp});
        if (!fresh) known.emplace(path, now);
    }
    if (error) return Error{ErrorCode::Io, request_.folder.string() + ": " + error.message()};
    known_ = std::move(known);
    std::ranges::sort(whole, [](Slot const& a, Slot const& b) {
        return std::tuple(a.stamp.written_ns, b.stamp.bytes, a.path) <
               std::tuple(b.stamp.written_ns, a.stamp.bytes, b.path);
    });
    return whole;
}

Result<FolderTotals> SlotFolder::pass(offline::Progress const& progress, Tell const& tell) {
    FolderTotals totals;
    for (auto const& slot : DKV_TRY(scan(totals, tell))) {
        if (totals.bytes <= request_.budget) break;
        auto outcome = compact(slot, progress);
        if (!outcome && outcome.error().code == ErrorCode::Cancelled) return outcome.error();
        bool const done = static_cast<bool>(outcome);
        auto& known = known_[slot.path];
        if (done && !request_.dry_run) {
            auto const stamp = stamp_of(slot.path);
            if (stamp) known.stamp = stamp.value();
        }
        known.state = done ? State::Compacted : State::Left;
        (done ? totals.compacted : totals.left) += 1;
        if (done)
            totals.bytes -= outcome.value().file_bytes_before - outcome.value().file_bytes_after;
        tell({slot.path, std::move(outcome)});
    }
    return totals;
}

Result<offline::CompactOutcome> SlotFolder::compact(Slot const& slot,
                                                    offline::Progress const& progress) {
    auto request = request_.compact;
    request.input = slot.path;
    request.output = work_path(slot.path);
    request.force = true;
    request.dry_run = request_.dry_run;
    auto outcome = DKV_TRY(offline::compact(*make_cpu_backend(), request, progress));
    auto const placed = [&]() -> Result<void> {
        if (outcome.kept_whole || outcome.file_bytes_after >= outcome.file_bytes_before)
            return Error{ErrorCode::BadState,
                         fmt::format("{}: the policy keeps all of its {} tokens",
                                     slot.path.string(), outcome.prompt_tokens)};
        if (request_.dry_run) return {};
        DKV_TRY(check_written(outcome));
        return put_in_place(slot, request.output);
    }();
    std::error_code ignored;
    if (!request_.dry_run) fs::remove(request.output, ignored);  // The original, if all went well.
    if (!placed) return placed.error();
    outcome.output = slot.path;
    return outcome;
}

/// What was written is read back before the original goes.
Result<void> SlotFolder::check_written(offline::CompactOutcome const& outcome) const {
    auto const made = DKV_TRY(open_cache(outcome.output, request_.compact.open));
    auto const& facts = made->facts();
    if (facts.prompt_tokens != outcome.prompt_tokens || facts.lengths != outcome.lengths)
        return Error{ErrorCode::CorruptData,
                     outcome.output.string() + ": what was written is not what was to be kept"};
    for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer)
        DKV_TRY(made->verify(layer));
    return {};
}

/// Errors: BadState when the server wrote to the file meanwhile, which it then keeps.
Result<void> SlotFolder::put_in_place(Slot const& slot, fs::path const& written) const {
    Error const changed{ErrorCode::BadState, slot.path.string() +
                                                 ": it was written to while it was compacted, and "
                                                 "stays as it is"};
    DKV_TRY(make_alike(written, slot.path));
    if (DKV_TRY(stamp_of(slot.path)) != slot.stamp) return changed;
    if (!DKV_TRY(exchange(written, slot.path))) return {};
    // A server that opened it in between has cut the file that is now under the other name.
    if (DKV_TRY(stamp_of(written)) == slot.stamp) return {};
    DKV_TRY(exchange(written, slot.path));
    return changed;
}

}  // namespace dkv::llama
