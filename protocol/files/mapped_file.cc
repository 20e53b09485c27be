#include "protocol/files/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "protocol/base/unique_fd.h"

namespace dkv {

Result<MappedFile> MappedFile::open(std::filesystem::path const& path) {
    auto const refuse = [&](char const* what) {
        return Error{ErrorCode::Io, fmt::format("{}: {}", path.string(), what)};
    };
    UniqueFd const fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (fd.get() < 0) return refuse(std::strerror(errno));
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) return refuse(std::strerror(errno));
    if (!S_ISREG(status.st_mode)) return refuse("not a regular file");
    auto const size = static_cast<std::size_t>(status.st_size);
    if (size == 0) return MappedFile({});
    void* const data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
    if (data == MAP_FAILED) return refuse(std::strerror(errno));
    return MappedFile({static_cast<std::byte const*>(data), size});
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
}

MappedFile::~MappedFile() {
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace dkv
