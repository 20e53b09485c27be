// A file that appears whole under its name, or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "protocol/base/result.h"
#include "protocol/base/unique_fd.h"
#include "protocol/container/links.h"

namespace dkv {

/// Written without a name (O_TMPFILE), so that nothing stays of a writer that is killed; commit()
/// gives it its own. Where the file system has no such files it has a temporary name in the same
/// folder (".dkv-….partial"), which only a kill leaves behind. Without commit() what stood under
/// the name before stands there still. A name that is a link to a file stays a link: the file it
/// leads to is replaced. With Links::Refuse no link is followed, whenever it was put there: one
/// that create() sees is an error, and a later one is replaced.
///
/// A process that may meet a limit on file sizes (RLIMIT_FSIZE) ignores SIGXFSZ, which would end it
/// before the error is seen.
class NewFile {
public:
    /// Errors: Io, naming the path and the reason; AlreadyExists for a folder, a FIFO, a device or
    /// a refused link under that name.
    ///
    /// Its mode is that of `like`, where there is such a file, or what umask leaves; in place of a
    /// file that stands under its name, only what that one's mode allows, too.
    static Result<NewFile> create(std::filesystem::path const& path,
                                  std::filesystem::path const& like = {},
                                  Links links = Links::Follow);

    NewFile(NewFile&& other) noexcept;
    NewFile& operator=(NewFile&& other) noexcept;
    ~NewFile();

    /// After what was appended before; small pieces are collected first.
    /// Errors: Io, with the reason ("No space left on device"), of these bytes or earlier ones.
    Result<void> append(std::span<std::byte const> bytes);
    /// Zeros, which rewrite() fills in any order; the disk has room for them.
    /// Errors: as append().
    Result<void> extend(std::uint64_t bytes);
    /// Over bytes that were appended already.
    Result<void> rewrite(std::uint64_t offset, std::span<std::byte const> bytes);
    std::uint64_t size() const noexcept { return size_; }

    /// On the disk (fsync of file and folder), then under its name. Nothing may be written after.
    Result<void> commit();

private:
    NewFile() = default;
    Error refused(int number) const;
    Result<void> open_named();
    Result<void> name_it();
    Result<void> flush();
    Result<void> write(std::uint64_t offset, std::span<std::byte const> bytes);
    void discard() noexcept;

    std::filesystem::path name_;  // As the caller has it: for messages.
    std::filesystem::path path_;
    std::filesystem::path partial_;  // Empty while the file has no name.
    UniqueFd descriptor_;
    std::vector<std::byte> buffer_;  // The last bytes of size_, not written yet.
    std::uint64_t size_ = 0;
};

}  // namespace dkv
