#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <limits>
#include <linux/magic.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <system_error>

#include "protocol/base/guarded_memory.h"
#include "protocol/base/resident.h"
#include "protocol/base/unique_fd.h"
#include "sidecar/memory/region.h"

namespace dkv {
namespace {

std::string errno_text(int code) {
    return std::generic_category().message(code);
}

/// Whether the kernel keeps the process itself from this one, not only what it asks for there.
bool is_kept_away(RegionSource const& source, int code) {
    auto const* const memfd = std::get_if<MemfdSource>(&source);
    if (memfd == nullptr) return false;
    if (code == EACCES || code == EPERM) return true;
    // /proc that is mounted with hidepid has no folder for it, while it lives.
    auto const folder = "/proc/" + std::to_string(memfd->pid);
    return code == ENOENT && ::access(folder.c_str(), F_OK) != 0 &&
           (::kill(static_cast<pid_t>(memfd->pid), 0) == 0 || errno == EPERM);
}

Error open_failed(RegionSource const& source, int code) {
    auto const what = describe(source);
    if (is_kept_away(source, code))
        return {ErrorCode::PermissionDenied,
                what +
                    " cannot be opened: the kernel lets the sidecar look into processes that "
                    "may do no more than it may; start the engine without capabilities, or set "
                    "DKV_ARENA=posix_shm for it"};
    switch (code) {
        case ENOENT:
        case ESRCH: return {ErrorCode::NotFound, what + " does not exist"};
        case EMFILE:
        case ENFILE:
            return {ErrorCode::LimitExceeded, what + ": the sidecar has too many files open"};
        default: return {ErrorCode::Io, "cannot open " + what + ": " + errno_text(code)};
    }
}

Result<UniqueFd> open_source(RegionSource const& source, bool writable) {
    int const flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK;
    if (auto const* const shm = std::get_if<PosixShmSource>(&source)) {
        if (shm->name.size() < 2 || shm->name.front() != '/' ||
            shm->name.find('/', 1) != std::string::npos || shm->name.size() > NAME_MAX ||
            shm->name == "/." || shm->name == "/..")
            return Error{ErrorCode::InvalidArgument,
                         "shared memory name '" + shm->name.substr(0, 64) +
                             "' is not a slash and then a name without one"};
        UniqueFd file(::shm_open(shm->name.c_str(), flags, 0));
        if (!file) return open_failed(source, errno);
        return file;
    }
    if (!std::holds_alternative<MemfdSource>(source))
        return Error{ErrorCode::Unsupported, describe(source) + " is not shared memory"};
    auto const& memfd = std::get<MemfdSource>(source);
    if (memfd.pid == 0 || memfd.fd < 0)
        return Error{ErrorCode::InvalidArgument, describe(source) + " names no descriptor"};
    auto const path = "/proc/" + std::to_string(memfd.pid) + "/fd/" + std::to_string(memfd.fd);
    // Looked at before it is opened: opening a pipe or a device of the engine would be felt there.
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) return open_failed(source, errno);
    if (!S_ISREG(info.st_mode))
        return Error{ErrorCode::InvalidArgument, describe(source) + " is not shared memory"};
    UniqueFd file(::open(path.c_str(), flags));
    if (!file) return open_failed(source, errno);
    return file;
}

/// Only memory may be mapped: reads of a file on a disk would block, and a cache is never there.
Result<void> check_is_memory(RegionSource const& source, int file, struct stat const& info) {
    struct statfs system {};
    bool const known = ::fstatfs(file, &system) == 0;
    if (!S_ISREG(info.st_mode) ||
        !(known && (system.f_type == TMPFS_MAGIC || system.f_type == HUGETLBFS_MAGIC)))
        return Error{ErrorCode::InvalidArgument, describe(source) + " is not shared memory"};
    return {};
}

class ShmRegion final : public MappedRegion {
public:
    ShmRegion(std::span<std::byte> mapped,
              GuardedMemory guarded,
              struct stat const& info,
              UniqueFd file,
              bool writable)
        : guarded_(std::move(guarded)) {
        data_ = mapped.data();
        bytes_ = mapped.size();
        writable_ = writable;
        identity_ = {info.st_dev, info.st_ino};
        int const seals = ::fcntl(file.get(), F_GET_SEALS);
        // A sealed file needs no second look; its descriptor is better spent on another region.
        if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) file_ = std::move(file);
    }
    ~ShmRegion() override {
        guarded_ = {};
        ::munmap(data_, bytes_);
        if (told_) told_();
    }

    Result<void> check_whole() const override;
    bool holds_descriptor() const noexcept override { return static_cast<bool>(file_); }
    std::uint64_t bytes_there(std::size_t offset, std::size_t bytes) const noexcept override;
    void drop(std::size_t offset, std::size_t bytes) const noexcept override;
    void when_closed(std::function<void()> told) const override { told_ = std::move(told); }

private:
    GuardedMemory guarded_;
    UniqueFd file_;  ///< Empty: it cannot shrink.
    mutable std::function<void()> told_;
};

}  // namespace

Result<RegionLease> attach(RegionSource const& source, std::uint64_t bytes, bool writable) {
    if (bytes == 0 || bytes > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max()))
        return Error{ErrorCode::InvalidArgument, describe(source) + " cannot be mapped with " +
                                                     std::to_string(bytes) + " bytes"};
    auto file = DKV_TRY(open_source(source, writable));
    struct stat info {};
    if (::fstat(file.get(), &info) != 0) return open_failed(source, errno);
    DKV_TRY(check_is_memory(source, file.get(), info));
    if (auto const* const memfd = std::get_if<MemfdSource>(&source);
        memfd != nullptr && memfd->inode != info.st_ino)
        return Error{ErrorCode::InvalidArgument, describe(source) + " is not the file with inode " +
                                                     std::to_string(memfd->inode)};
    // A mapping past the end would be a SIGBUS at the first touch, far from its cause.
    if (static_cast<std::uint64_t>(info.st_size) < bytes)
        return Error{ErrorCode::InvalidArgument, describe(source) + " has " +
                                                     std::to_string(info.st_size) + " bytes, not " +
                                                     std::to_string(bytes)};

    int const protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void* const data = ::mmap(nullptr, bytes, protection, MAP_SHARED, file.get(), 0);
    if (data == MAP_FAILED)
        return Error{ErrorCode::Io, "cannot map " + describe(source) + ": " + errno_text(errno)};
    auto guarded = GuardedMemory::over(data, bytes);
    if (!guarded) {
        ::munmap(data, bytes);
        return std::move(guarded).error();
    }
    return RegionLease(std::make_shared<ShmRegion>(
        std::span(static_cast<std::byte*>(data), static_cast<std::size_t>(bytes)),
        std::move(guarded).value(), info, std::move(file), writable));
}

bool MappedRegion::same_as(MappedRegion const& other) const noexcept {
    return place_ == other.place_ && identity_ == other.identity_ && bytes_ == other.bytes_ &&
           writable_ == other.writable_;
}

Result<void> ShmRegion::check_whole() const {
    if (!guarded_.is_whole())
        return Error{ErrorCode::Io,
                     "the system had no page for a region of " + std::to_string(bytes_) +
                         " bytes when it was touched: the file was cut, or /dev/shm is full"};
    if (!file_) return {};
    struct stat info {};
    if (::fstat(file_.get(), &info) != 0)
        return Error{ErrorCode::Io, "cannot look at a region: " + errno_text(errno)};
    if (static_cast<std::uint64_t>(info.st_size) < bytes_)
        return Error{ErrorCode::InvalidArgument,
                     "a region of " + std::to_string(bytes_) + " bytes was cut to " +
                         std::to_string(info.st_size) + " while it was registered"};
    return {};
}

std::uint64_t ShmRegion::bytes_there(std::size_t offset, std::size_t bytes) const noexcept {
    return resident_bytes(data_ + offset, bytes);
}

void ShmRegion::drop(std::size_t offset, std::size_t bytes) const noexcept {
    if (offset >= bytes_ || bytes == 0) return;
    auto const page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    std::size_t const begin = offset / page * page;
    std::size_t const end = offset + std::min(bytes, bytes_ - offset);
    ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace dkv
