// A file that appears whole under its name, or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "protocol/base/result.h"

namespace dkv {

/// Written under a temporary name in the same folder; commit() gives it its own. Without commit()
/// nothing is left behind, and what stood under the name before stands there still.
class NewFile {
public:
    /// Errors: Io, naming the path and the reason; AlreadyExists for a folder, a FIFO or a device
    /// under that name.
    static Result<NewFile> create(std::filesystem::path const& path);

    NewFile(NewFile&& other) noexcept;
    NewFile& operator=(NewFile&& other) noexcept;
    ~NewFile();

    /// After what was appended before. Errors: Io, with the reason ("No space left on device").
    Result<void> append(std::span<std::byte const> bytes);
    /// Over bytes that were appended already.
    Result<void> rewrite(std::uint64_t offset, std::span<std::byte const> bytes);
    std::uint64_t size() const noexcept { return size_; }

    /// On the disk (fsync of file and folder), then under its name. Nothing may be written after.
    Result<void> commit();

private:
    NewFile() = default;
    void discard() noexcept;

    std::filesystem::path path_;
    std::filesystem::path partial_;
    int descriptor_ = -1;
    std::uint64_t size_ = 0;
};

}  // namespace dkv
