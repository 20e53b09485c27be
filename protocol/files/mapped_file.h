// A file's bytes in memory, read-only.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include "protocol/base/result.h"

namespace dkv {

/// Unmapped when this goes.
class MappedFile {
public:
    /// Errors: Io when it cannot be opened or mapped (the message names path and reason), also for
    /// what is no regular file: nothing waits for a pipe's other end.
    static Result<MappedFile> open(std::filesystem::path const& path);

    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();

    std::span<std::byte const> bytes() const noexcept { return bytes_; }

private:
    explicit MappedFile(std::span<std::byte const> bytes) : bytes_(bytes) {}

    std::span<std::byte const> bytes_;
};

}  // namespace dkv
