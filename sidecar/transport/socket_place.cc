#include "sidecar/transport/socket_place.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <system_error>

#include "protocol/base/endpoint.h"
#include "protocol/base/printable.h"
#include "protocol/base/version.h"

namespace dkv {
namespace {

constexpr std::size_t kHolderBytesMax = 100;

Error io(std::string const& what) {
    return {ErrorCode::Io, what + ": " + std::generic_category().message(errno)};
}

std::string directory_of(std::string const& path) {
    auto const slash = path.rfind('/');
    if (slash == std::string::npos) return ".";
    return slash == 0 ? "/" : path.substr(0, slash);
}

Result<void> make_directory(std::string const& directory) {
    if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
        return io("cannot create directory '" + directory + "'");
    struct stat link {};
    struct stat info {};
    if (::lstat(directory.c_str(), &link) != 0 || ::stat(directory.c_str(), &info) != 0)
        return io("cannot look at directory '" + directory + "'");
    auto const refused = [&](char const* why) {
        return Error{ErrorCode::InvalidArgument, "directory '" + directory + "' " + why};
    };
    if (!S_ISDIR(info.st_mode)) return refused("is not a directory");
    // Also the owner of a link: another user's link would lead to a directory of their choice.
    if (info.st_uid != ::geteuid() || link.st_uid != ::geteuid())
        return refused("belongs to another user");
    if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return refused("can be written to by others; a socket needs one of mode 0700");
    return {};
}

/// Whether a process accepts connections at the socket.
Result<bool> is_live(std::string const& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path))
        return Error{ErrorCode::InvalidArgument, "path '" + path + "' is too long for a socket"};
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!probe) return io("cannot make a socket");
    if (::connect(probe.get(), reinterpret_cast<sockaddr const*>(&address), sizeof(address)) == 0)
        return true;
    // A full backlog is a sign of life.
    return errno == EAGAIN;
}

/// The lock file's text is its holder's version and process. Where the disk is full it stays empty.
void sign(int lock) {
    auto const text = fmt::format("dkvd {}, process {}", kVersion, ::getpid());
    [[maybe_unused]] auto const written = ::pwrite(lock, text.data(), text.size(), 0);
}

/// Both versions, since a second sidecar is most often an upgrade. lock: negative where its holder
/// is unknown.
Error taken(std::string const& endpoint, int lock) {
    std::string text(kHolderBytesMax, '\0');
    auto const bytes = lock < 0 ? 0 : ::pread(lock, text.data(), text.size(), 0);
    text.resize(bytes < 0 ? 0 : static_cast<std::size_t>(bytes));
    return {ErrorCode::AlreadyExists,
            "a sidecar already listens at " + endpoint + ": " +
                (text.empty() ? "of an unknown version" : printable(text, kHolderBytesMax)) +
                "; this is dkvd " + kVersion};
}

}  // namespace

Result<SocketPlace> SocketPlace::take(std::string const& endpoint) {
    SocketPlace place;
    auto const path = ipc_path(endpoint);
    if (path.empty()) return place;
    DKV_TRY(make_directory(directory_of(path)));

    UniqueFd lock(
        ::open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!lock) return io("cannot open '" + path + ".lock'");
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK) return taken(endpoint, lock.get());
        return io("cannot lock '" + path + ".lock'");
    }
    // An earlier holder's text.
    if (::ftruncate(lock.get(), 0) != 0) return io("cannot write '" + path + ".lock'");
    struct stat info {};
    if (::lstat(path.c_str(), &info) == 0) {
        if (!S_ISSOCK(info.st_mode))
            return Error{ErrorCode::AlreadyExists,
                         "'" + path + "' is in the way: it exists and is not a socket"};
        if (DKV_TRY(is_live(path))) return taken(endpoint, -1);
        if (::unlink(path.c_str()) != 0) return io("cannot remove the stale socket '" + path + "'");
    }
    sign(lock.get());
    place.path_ = path;
    place.lock_ = std::move(lock);
    return place;
}

SocketPlace::SocketPlace(SocketPlace&& other) noexcept
    : path_(std::exchange(other.path_, {})),
      inode_(std::exchange(other.inode_, 0)),
      lock_(std::move(other.lock_)) {}

SocketPlace::~SocketPlace() {
    // The lock file stays: removing it would let two sidecars hold locks of the same name.
    if (inode_ != 0 && is_there()) ::unlink(path_.c_str());
}

Result<void> SocketPlace::bound() {
    if (path_.empty()) return {};
    struct stat info {};
    if (::lstat(path_.c_str(), &info) != 0) return io("cannot look at '" + path_ + "'");
    inode_ = info.st_ino;
    return {};
}

bool SocketPlace::is_there() const noexcept {
    if (path_.empty()) return true;
    struct stat info {};
    return ::lstat(path_.c_str(), &info) == 0 && info.st_ino == inode_;
}

OwnerOnly::OwnerOnly() noexcept : before_(::umask(0177)) {}
OwnerOnly::~OwnerOnly() {
    ::umask(before_);
}

}  // namespace dkv
