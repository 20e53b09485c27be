#include "protocol/container/new_file.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <random>
#include <unistd.h>
#include <utility>

#include <fmt/format.h>
#include <sys/stat.h>
#include <system_error>

namespace dkv {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20U;
constexpr unsigned kNamesTried = 100;

/// Errors: AlreadyExists for what a rename would destroy without being a file.
Result<void> check_replaceable(std::filesystem::path const& path, struct stat const& status) {
    if (S_ISREG(status.st_mode)) return {};
    char const* const what = S_ISLNK(status.st_mode)    ? "a link"
                             : S_ISDIR(status.st_mode)  ? "a folder"
                             : S_ISFIFO(status.st_mode) ? "a FIFO"
                                                        : "a device or a socket";
    return Error{ErrorCode::AlreadyExists,
                 fmt::format("{}: there is {} of this name", path.string(), what)};
}

/// Where the kernel shows an open file, to link it from: linking by descriptor is for root alone.
std::string proc_path(UniqueFd const& file) {
    return fmt::format("/proc/self/fd/{}", file.get());
}

std::filesystem::path folder_of(std::filesystem::path const& path) {
    return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::filesystem::path partial_name(std::filesystem::path const& path) {
    std::random_device random;
    return folder_of(path) / fmt::format(".dkv-{:08x}{:08x}.partial", random(), random());
}

/// None where the file system has no files without a name, or where none could be given one later.
UniqueFd open_unnamed(std::filesystem::path const& folder) {
    UniqueFd file(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666));
    if (file && ::access(proc_path(file).c_str(), F_OK) != 0) file.reset();
    return file;
}

}  // namespace

Result<NewFile> NewFile::create(std::filesystem::path const& path,
                                std::filesystem::path const& like,
                                Links links) {
    NewFile file;
    file.name_ = file.path_ = path;
    if (!path.has_filename()) return file.refused(EISDIR);
    struct stat status {};
    bool const follows = links == Links::Follow;
    bool const replaces =
        (follows ? ::stat(path.c_str(), &status) : ::lstat(path.c_str(), &status)) == 0;
    if (replaces) DKV_TRY(check_replaceable(path, status));
    std::error_code problem;
    if (replaces && follows) file.path_ = std::filesystem::canonical(path, problem);
    if (problem) file.path_ = path;

    file.descriptor_ = open_unnamed(folder_of(file.path_));
    if (!file.descriptor_) DKV_TRY(file.open_named());
    // Who could not read the input, or the old one, does not read the new one.
    mode_t mode = replaces ? status.st_mode & 0777U : 0777U;
    bool const has_like = !like.empty() && ::stat(like.c_str(), &status) == 0;
    if (has_like) mode &= status.st_mode & 0666U;
    if ((replaces || has_like) && ::fchmod(file.descriptor_.get(), mode) != 0)
        return file.refused(errno);
    return file;
}

Result<void> NewFile::open_named() {
    for (unsigned attempt = 0; attempt < kNamesTried; ++attempt) {
        auto const partial = partial_name(path_);
        descriptor_ =
            UniqueFd(::open(partial.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
        if (!descriptor_ && errno == EEXIST) continue;
        if (!descriptor_) return refused(errno);
        partial_ = partial;
        return {};
    }
    return refused(EEXIST);
}

NewFile::NewFile(NewFile&& other) noexcept
    : name_(std::move(other.name_)),
      path_(std::move(other.path_)),
      partial_(std::exchange(other.partial_, {})),
      descriptor_(std::move(other.descriptor_)),
      buffer_(std::exchange(other.buffer_, {})),
      size_(std::exchange(other.size_, 0)) {}

NewFile& NewFile::operator=(NewFile&& other) noexcept {
    if (this == &other) return *this;
    discard();
    name_ = std::move(other.name_);
    path_ = std::move(other.path_);
    partial_ = std::exchange(other.partial_, {});
    descriptor_ = std::move(other.descriptor_);
    buffer_ = std::exchange(other.buffer_, {});
    size_ = std::exchange(other.size_, 0);
    return *this;
}

NewFile::~NewFile() {
    discard();
}

void NewFile::discard() noexcept {
    if (!partial_.empty()) ::unlink(partial_.c_str());
    partial_.clear();
    descriptor_.reset();
}

Error NewFile::refused(int number) const {
    return {ErrorCode::Io, fmt::format("{}: {}", name_.string(), std::strerror(number))};
}

Result<void> NewFile::write(std::uint64_t offset, std::span<std::byte const> bytes) {
    while (!bytes.empty()) {
        auto const written =
            ::pwrite(descriptor_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return refused(written < 0 ? errno : EIO);
        bytes = bytes.subspan(static_cast<std::size_t>(written));
        offset += static_cast<std::uint64_t>(written);
    }
    return {};
}

Result<void> NewFile::flush() {
    DKV_TRY(write(size_ - buffer_.size(), buffer_));
    buffer_.clear();
    return {};
}

Result<void> NewFile::append(std::span<std::byte const> bytes) {
    DKV_ASSERT(descriptor_);
    if (buffer_.size() + bytes.size() > kBufferBytes) DKV_TRY(flush());
    if (bytes.size() >= kBufferBytes) {
        DKV_TRY(write(size_, bytes));
    } else {
        buffer_.reserve(kBufferBytes);
        buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    }
    size_ += bytes.size();
    return {};
}

Result<void> NewFile::extend(std::uint64_t bytes) {
    DKV_ASSERT(descriptor_);
    DKV_TRY(flush());
    if (bytes == 0) return {};
    int number = EINTR;
    while (number == EINTR)
        number = ::posix_fallocate(descriptor_.get(), static_cast<off_t>(size_),
                                   static_cast<off_t>(bytes));
    if (number != 0) return refused(number);
    size_ += bytes;
    return {};
}

Result<void> NewFile::rewrite(std::uint64_t offset, std::span<std::byte const> bytes) {
    DKV_ASSERT(descriptor_ && offset <= size_ && bytes.size() <= size_ - offset);
    DKV_TRY(flush());
    return write(offset, bytes);
}

/// A link does not replace what is there, a rename does: then it is linked beside it first.
Result<void> NewFile::name_it() {
    auto const file = proc_path(descriptor_);
    for (unsigned attempt = 0; attempt < kNamesTried && partial_.empty(); ++attempt) {
        auto const name = attempt == 0 ? path_ : partial_name(path_);
        if (::linkat(AT_FDCWD, file.c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) == 0) {
            if (attempt == 0) return {};
            partial_ = name;
        } else if (errno != EEXIST) {
            return refused(errno);
        }
    }
    if (partial_.empty()) return refused(EEXIST);
    if (::rename(partial_.c_str(), path_.c_str()) != 0) return refused(errno);
    partial_.clear();
    return {};
}

Result<void> NewFile::commit() {
    DKV_ASSERT(descriptor_);
    DKV_TRY(flush());
    if (::fsync(descriptor_.get()) != 0) return refused(errno);
    DKV_TRY(name_it());
    descriptor_.reset();
    auto const folder = folder_of(path_);
    UniqueFd const held(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    // A folder that may be written but not read cannot be synced; the file is there all the same.
    if (held && ::fsync(held.get()) != 0 && errno != EINVAL) return refused(errno);
    return {};
}

}  // namespace dkv
