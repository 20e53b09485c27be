#include "cli/saved/offline/in_place.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <string_view>
#include <unistd.h>

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <system_error>

namespace dkv::offline {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWorkSuffix = ".dkv-compact";

Error errno_at(fs::path const& path, int number) {
    return {ErrorCode::Io, fmt::format("{}: {}", path.string(), std::strerror(number))};
}

/// Hidden, so that neither a server nor the next pass takes it for a cache.
fs::path work_path(fs::path const& path) {
    return path.parent_path() / ("." + path.filename().string() + std::string(kWorkSuffix));
}

/// The two names swap their files; where the file system cannot, `from` takes the place of `to`.
/// Returns whether they were swapped.
Result<bool> exchange(fs::path const& from, fs::path const& to) {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) == 0)
        return true;
    if (errno != EINVAL && errno != ENOSYS) return errno_at(to, errno);
    if (::rename(from.c_str(), to.c_str()) != 0) return errno_at(to, errno);
    return false;
}

/// What is there under the work's name is of a run that was killed, or a link to a file of others;
/// one that is put there later is refused.
Result<void> clear(fs::path const& work) {
    if (::unlink(work.c_str()) != 0 && errno != ENOENT) return errno_at(work, errno);
    return {};
}

/// Owner, mode and time of `original`: its program goes on reading it, and age decides what is
/// compacted next. By descriptor: no link that was put there meanwhile is followed.
Result<void> make_alike(fs::path const& path, fs::path const& original) {
    struct stat was {};
    struct stat is {};
    if (::lstat(original.c_str(), &was) != 0) return errno_at(original, errno);
    UniqueFd const file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (!file || ::fstat(file.get(), &is) != 0) return errno_at(path, errno);
    bool const same_owner = was.st_uid == is.st_uid && was.st_gid == is.st_gid;
    if (!same_owner && ::fchown(file.get(), was.st_uid, was.st_gid) != 0)
        return Error{ErrorCode::PermissionDenied,
                     fmt::format("{}: it is of user {} and group {}, whom a new file cannot be "
                                 "given to: run this as that user",
                                 original.string(), was.st_uid, was.st_gid)};
    if (::fchmod(file.get(), was.st_mode & 07777U) != 0) return errno_at(path, errno);
    timespec const times[] = {was.st_atim, was.st_mtim};
    if (::futimens(file.get(), times) != 0) return errno_at(path, errno);
    return {};
}

/// What was written is read back before the original goes.
Result<void> check_written(CompactOutcome const& outcome, OpenOptions const& open) {
    auto const made = DKV_TRY(open_cache(outcome.output, open));
    auto const& facts = made->facts();
    if (facts.prompt_tokens != outcome.prompt_tokens || facts.lengths != outcome.lengths)
        return Error{ErrorCode::CorruptData,
                     outcome.output.string() + ": what was written is not what was to be kept"};
    for (std::uint32_t layer = 0; layer < facts.geometry.layers; ++layer)
        DKV_TRY(made->verify(layer));
    return {};
}

Result<void> put_in_place(fs::path const& path, FileStamp const& stamp, fs::path const& written) {
    Error const changed{ErrorCode::BadState, path.string() +
                                                 ": it was written to while it was compacted, and "
                                                 "stays as it is"};
    DKV_TRY(make_alike(written, path));
    if (DKV_TRY(stamp_of(path)) != stamp) return changed;
    if (!DKV_TRY(exchange(written, path))) return {};
    // A server that opened it in between has cut the file that is now under the other name.
    if (DKV_TRY(stamp_of(written)) == stamp) return {};
    DKV_TRY(exchange(written, path));
    return changed;
}

}  // namespace

std::int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::system_clock::now().time_since_epoch())
        .count();
}

Result<FileStamp> stamp_of(fs::path const& path) {
    struct stat facts {};
    if (::lstat(path.c_str(), &facts) != 0) return errno_at(path, errno);
    return FileStamp{
        .device = facts.st_dev,
        .inode = facts.st_ino,
        .bytes = static_cast<std::uint64_t>(facts.st_size),
        .written_ns = std::int64_t{facts.st_mtim.tv_sec} * 1'000'000'000 + facts.st_mtim.tv_nsec};
}

Result<UniqueFd> lock_folder(fs::path const& folder) {
    UniqueFd lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!lock)
        return Error{errno == ENOENT || errno == ENOTDIR ? ErrorCode::NotFound : ErrorCode::Io,
                     fmt::format("{}: no folder that can be read: {}", folder.string(),
                                 std::strerror(errno))};
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0)
        return Error{
            ErrorCode::AlreadyExists,
            folder.string() + ": another dkv llama watch-slots has this folder, or a dkv prune"};
    return lock;
}

void remove_leftovers(fs::path const& folder) {
    std::error_code ignored;
    for (auto const& entry : fs::directory_iterator(folder, ignored)) {
        auto const name = entry.path().filename().string();
        if (name.starts_with(".") && name.ends_with(kWorkSuffix)) fs::remove(entry.path(), ignored);
    }
}

Result<CompactOutcome> compact_in_place(CompactRequest request,
                                        FileStamp const& stamp,
                                        Progress const& progress) {
    auto const path = request.input;
    request.output = work_path(path);
    request.links = Links::Refuse;
    request.force = true;
    if (!request.dry_run) DKV_TRY(clear(request.output));
    auto outcome = DKV_TRY(compact(*make_cpu_backend(), request, progress));
    auto const placed = [&]() -> Result<void> {
        if (outcome.kept_whole || outcome.file_bytes_after >= outcome.file_bytes_before)
            return Error{ErrorCode::BadState,
                         fmt::format("{}: the policy keeps all of its {} tokens", path.string(),
                                     outcome.prompt_tokens)};
        if (request.dry_run) return {};
        DKV_TRY(check_written(outcome, request.open));
        return put_in_place(path, stamp, request.output);
    }();
    std::error_code ignored;
    if (!request.dry_run) fs::remove(request.output, ignored);  // The original, if all went well.
    if (!placed) return placed.error();
    outcome.output = path;
    return outcome;
}

}  // namespace dkv::offline
