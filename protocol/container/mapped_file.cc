#include "protocol/container/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "protocol/base/unique_fd.h"

namespace dkv {

Result<MappedFile> MappedFile::open(std::filesystem::path const& path, Links links) {
    auto const refuse = [&](char const* what) {
        return Error{ErrorCode::Io, fmt::format("{}: {}", path.string(), what)};
    };
    int const no_link = links == Links::Refuse ? O_NOFOLLOW : 0;
    UniqueFd const fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | no_link));
    if (fd.get() < 0) return refuse(std::strerror(errno));
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) return refuse(std::strerror(errno));
    if (!S_ISREG(status.st_mode)) return refuse("not a regular file");
    MappedFile file;
    file.path_ = path;
    file.device_ = status.st_dev;
    file.inode_ = status.st_ino;
    file.written_ = status.st_mtim;
    auto const size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return file;
    void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (data == MAP_FAILED) return refuse(std::strerror(errno));
    file.bytes_ = {static_cast<std::byte const*>(data), size};
    file.guarded_ = DKV_TRY(GuardedMemory::over(data, size));
    return file;
}

Result<void> MappedFile::check_unchanged() const {
    Error const changed{ErrorCode::Io, path_.string() + ": the file changed while it was read"};
    if (!guarded_.is_whole()) return changed;
    struct stat status {};
    // Another file of this name, or none, leaves the one that is mapped as it is.
    if (::stat(path_.c_str(), &status) != 0 || status.st_dev != device_ || status.st_ino != inode_)
        return {};
    bool const same = static_cast<std::size_t>(status.st_size) == bytes_.size() &&
                      status.st_mtim.tv_sec == written_.tv_sec &&
                      status.st_mtim.tv_nsec == written_.tv_nsec;
    if (same) return {};
    return changed;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})),
      path_(std::move(other.path_)),
      device_(other.device_),
      inode_(other.inode_),
      written_(other.written_),
      guarded_(std::move(other.guarded_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(path_, other.path_);
    std::swap(device_, other.device_);
    std::swap(inode_, other.inode_);
    std::swap(written_, other.written_);
    std::swap(guarded_, other.guarded_);
    return *this;
}

MappedFile::~MappedFile() {
    guarded_ = {};
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace dkv
