#include "protocol/sdk/arena.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <linux/falloc.h>
#include <string_view>
#include <unistd.h>
#include <utility>

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

/// A file descriptor until it is handed on.
class Descriptor {
public:
    explicit Descriptor(int fd) noexcept : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    Descriptor(Descriptor const&) = delete;
    Descriptor& operator=(Descriptor const&) = delete;
    int get() const noexcept { return fd_; }
    int hand_on() noexcept { return std::exchange(fd_, -1); }

private:
    int fd_;
};

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

Result<std::shared_ptr<Arena>> Arena::create(std::uint64_t bytes, dkv_arena_kind kind) {
    if (bytes == 0) return Error{ErrorCode::InvalidArgument, "an arena of 0 bytes"};
    bool const named = DKV_TRY(wants_name(kind));
    if (bytes > INT64_MAX - page_bytes()) return (errno = EFBIG, refused("an arena", bytes));

    std::string name;
    if (named) name = "/dkv-" + std::to_string(::getpid()) + "-" + hex(random_id());
    Descriptor fd(named ? ::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)
                        : ::memfd_create("dkv", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd.get() < 0) return refused(named ? "shared memory" : "a memfd", bytes);

    struct stat info {};
    void* base = MAP_FAILED;
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
    return std::shared_ptr<Arena>(new Arena(static_cast<std::byte*>(base), bytes, fd.hand_on(),
                                            info.st_ino, std::move(name)));
}

Arena::Arena(std::byte* base, std::uint64_t bytes, int fd, std::uint64_t inode, std::string name)
    : id_(random_id()),
      base_(base),
      bytes_(bytes),
      fd_(fd),
      inode_(inode),
      name_(std::move(name)),
      owner_(::getpid()) {}

Arena::~Arena() {
    for (auto const& action : on_destroy_)
        action();
    ::munmap(base_, bytes_);
    ::close(fd_);
    if (owner_ == ::getpid()) unlink_name();  // A forked child's copy is not the owner.
}

Result<void> Arena::release(std::uint64_t offset, std::uint64_t bytes) {
    if (offset > bytes_ || bytes > bytes_ - offset)
        return Error{ErrorCode::InvalidArgument,
                     "bytes " + std::to_string(offset) + " … +" + std::to_string(bytes) +
                         " are not inside an arena of " + std::to_string(bytes_)};
    std::uint64_t const page = page_bytes();
    std::uint64_t const begin = (offset + page - 1) / page * page;
    // The last page is whole when the arena ends in it.
    std::uint64_t const end = offset + bytes == bytes_ ? (bytes_ + page - 1) / page * page
                                                       : (offset + bytes) / page * page;
    if (begin >= end) return {};
    if (::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(begin),
                    static_cast<off_t>(end - begin)) != 0)
        return refused("release", end - begin);
    return {};
}

std::uint64_t Arena::allocated_bytes() const noexcept {
    constexpr std::uint64_t kStatBlockBytes = 512;
    struct stat info {};
    if (::fstat(fd_, &info) != 0) return 0;
    return static_cast<std::uint64_t>(info.st_blocks) * kStatBlockBytes;
}

wire::RegionSourceUnion Arena::source() {
    wire::RegionSourceUnion source;
    std::lock_guard const lock(mutex_);
    if (!name_.empty()) {
        wire::PosixShmT shm;
        shm.name = name_;
        source.Set(std::move(shm));
    } else {
        wire::MemfdT memfd;
        memfd.pid = static_cast<std::uint32_t>(::getpid());
        memfd.fd = fd_;
        memfd.inode = inode_;
        source.Set(std::move(memfd));
    }
    return source;
}

void Arena::unlink_name() {
    std::lock_guard const lock(mutex_);
    if (!name_.empty()) ::shm_unlink(name_.c_str());
    name_.clear();
}

void Arena::on_destroy(std::function<void()> action) {
    std::lock_guard const lock(mutex_);
    on_destroy_.push_back(std::move(action));
}

}  // namespace dkv::sdk
