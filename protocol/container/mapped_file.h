// A file's bytes in memory, read-only.
#pragma once

#include <cstddef>
#include <ctime>
#include <filesystem>
#include <span>

#include <sys/types.h>

#include "protocol/base/guarded_memory.h"
#include "protocol/base/result.h"
#include "protocol/container/links.h"

namespace dkv {

/// Unmapped when this goes.
class MappedFile {
public:
    /// Errors: Io when it cannot be opened or mapped (the message names path and reason), also for
    /// anything but a regular file: nothing waits for a pipe's other end. A refused link, too.
    static Result<MappedFile> open(std::filesystem::path const& path, Links links = Links::Follow);

    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();

    std::span<std::byte const> bytes() const noexcept { return bytes_; }

    /// Nothing stops another program from writing to a file that is mapped here.
    /// Errors: Io when it was written to, or cut, since it was opened.
    Result<void> check_unchanged() const;

private:
    MappedFile() = default;

    std::span<std::byte const> bytes_;
    std::filesystem::path path_;
    dev_t device_ = 0;
    ino_t inode_ = 0;
    timespec written_{};
    GuardedMemory guarded_;  // Behind the bytes: it ends before they do.
};

}  // namespace dkv
