#include "protocol/sdk/shm_arena.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string_view>
#include <unistd.h>
#include <utility>

#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "protocol/sdk/clock.h"

namespace dkv::sdk {
namespace {

std::uint64_t page_bytes() noexcept {
    return static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

Error refused(std::string const& what, std::uint64_t bytes) {
    return Error{ErrorCode::Io,
                 what + " of " + std::to_string(bytes) + " bytes refused: " + std::strerror(errno)};
}

Result<bool> wants_name(dkv_arena_kind kind) {
    switch (kind) {
        case DKV_ARENA_MEMFD: return false;
        case DKV_ARENA_POSIX_SHM: return true;
        case DKV_ARENA_DEFAULT: break;
        default:
            return Error{
                ErrorCode::InvalidArgument,
                "arena kind is " + std::to_string(static_cast<int>(kind)) + ", not in 0 … 2"};
    }
    char const* const set = std::getenv("DKV_ARENA");
    std::string_view const wish = set == nullptr ? "" : set;
    if (wish.empty() || wish == "memfd") return false;
    if (wish == "posix_shm") return true;
    return Error{ErrorCode::InvalidArgument,
                 "DKV_ARENA is '" + std::string(wish) + "', neither memfd nor posix_shm"};
}

}  // namespace

Result<std::shared_ptr<Arena>> ShmArena::create(std::uint64_t bytes, dkv_arena_kind kind) {
    if (bytes == 0) return Error{ErrorCode::InvalidArgument, "an arena of 0 bytes"};
    bool const named = DKV_TRY(wants_name(kind));
    if (bytes > INT64_MAX - page_bytes()) return (errno = EFBIG, refused("an arena", bytes));

    std::string name;
    if (named) name = "/dkv-" + std::to_string(::getpid()) + "-" + hex(random_id());
    UniqueFd fd(named ? ::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
                      : ::memfd_create("dkv", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd.get() < 0) return refused(named ? "shared memory" : "a memfd", bytes);
    // For as long as this process has it: a sidecar that starts unlinks names that no one holds.
    if (named) ::flock(fd.get(), LOCK_SH);

    struct stat info {};
    void* base = MAP_FAILED;
    // /dev/shm may be small, and others fill it, too: a page that is not there when it is touched
    // ends this process. So all of a named arena is there from the start.
    if (named && (errno = ::posix_fallocate(fd.get(), 0, static_cast<off_t>(bytes))) != 0) {
        auto error = refused("shared memory in /dev/shm", bytes);
        ::shm_unlink(name.c_str());
        return error;
    }
    if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0 && ::fstat(fd.get(), &info) == 0)
        base =
            ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd.get(), 0);
    if (base == MAP_FAILED) {
        auto error = refused("an arena", bytes);
        if (named) ::shm_unlink(name.c_str());
        return error;
    }
    // A sidecar that maps it can rely on its length: no SIGBUS over there, whatever happens here.
    if (!named) ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    return std::shared_ptr<Arena>(new ShmArena(static_cast<std::byte*>(base), bytes, fd.release(),
                                               info.st_ino, std::move(name)));
}

ShmArena::ShmArena(
    std::byte* base, std::uint64_t bytes, int fd, std::uint64_t inode, std::string name)
    : Arena(base, bytes), fd_(fd), inode_(inode), name_(std::move(name)), owner_(::getpid()) {}

ShmArena::~ShmArena() {
    static_cast<void>(detach(nullptr));
    ::munmap(base(), bytes());
    ::close(fd_);
    if (owner_ == ::getpid()) on_mapped();  // A forked child's copy is not the owner.
}

Result<void> ShmArena::release(std::uint64_t offset, std::uint64_t range_bytes) {
    DKV_TRY(check_range(offset, range_bytes));
    if (owner_ != ::getpid())
        return Error{ErrorCode::BadState,
                     "this arena belongs to the process before fork(), which would lose its rows: "
                     "destroy it here instead"};
    std::uint64_t const page = page_bytes();
    std::uint64_t const begin = (offset + page - 1) / page * page;
    // The last page is whole when the arena ends in it.
    std::uint64_t const range_end = offset + range_bytes;
    std::uint64_t const end =
        (range_end == bytes() ? range_end + page - 1 : range_end) / page * page;
    if (begin >= end) return {};
    if (::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(begin),
                    static_cast<off_t>(end - begin)) != 0)
        return refused("release", end - begin);
    return {};
}

std::uint64_t ShmArena::allocated_bytes() const noexcept {
    constexpr std::uint64_t kStatBlockBytes = 512;
    struct stat info {};
    if (::fstat(fd_, &info) != 0) return 0;
    return static_cast<std::uint64_t>(info.st_blocks) * kStatBlockBytes;
}

Result<ArenaSource> ShmArena::source() {
    ArenaSource source;
    std::lock_guard const lock(mutex());
    if (!name_.empty()) {
        wire::PosixShmT shm;
        shm.name = name_;
        source.region.Set(std::move(shm));
    } else {
        wire::MemfdT memfd;
        memfd.pid = static_cast<std::uint32_t>(::getpid());
        memfd.fd = fd_;
        memfd.inode = inode_;
        source.region.Set(std::move(memfd));
    }
    return source;
}

void ShmArena::on_mapped() {
    std::lock_guard const lock(mutex());
    if (!name_.empty()) ::shm_unlink(name_.c_str());
    name_.clear();
}

Result<void> ShmArena::read(std::uint64_t offset, std::span<std::byte> target) const {
    std::memcpy(target.data(), base() + offset, target.size());
    return {};
}

}  // namespace dkv::sdk
