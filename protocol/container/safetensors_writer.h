// Writes the container that safetensors.h reads, tensor by tensor, with a CRC-32 of each if wanted.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "protocol/container/new_file.h"

namespace dkv {

/// A tensor to come. Its bytes follow from dtype and shape.
struct TensorPlan {
    std::string name;
    std::string dtype;  ///< "F32", "F16", "BF16", "I32" …
    std::vector<std::uint64_t> shape;
};

/// The header goes first, so every shape is known before any byte; CRCs go into room that the
/// header's metadata keep for them (checksums.h). The same tensors and metadata make the same file,
/// byte for byte.
class SafetensorsWriter {
public:
    /// Tensors lie in the file in this order, one right after another as the format demands: the
    /// first from a multiple of 64 bytes, one of 4-byte elements after an odd number of 2-byte
    /// elements from a multiple of 2 alone. Invalid UTF-8 in the metadata becomes U+FFFD.
    ///
    /// Errors: those of NewFile::create(); InvalidArgument for a name twice, an unknown dtype or
    /// sizes that overflow.
    static Result<SafetensorsWriter> create(std::filesystem::path const& path,
                                            std::vector<TensorPlan> tensors,
                                            std::map<std::string, std::string> metadata,
                                            bool with_crcs = true,
                                            std::filesystem::path const& like = {},
                                            Links links = Links::Follow);

    /// The next bytes of the tensors, one tensor after another, in pieces of any size.
    /// Errors: those of NewFile::append(); BadState for more bytes than the tensors have.
    Result<void> append(std::span<std::byte const> bytes);

    /// Errors: BadState when bytes are missing; those of NewFile::commit().
    Result<void> commit();

    std::uint64_t file_bytes() const noexcept { return header_bytes_ + data_bytes_; }

    /// The size of such a file, exactly. Errors: InvalidArgument, as create() says.
    static Result<std::uint64_t> file_bytes(std::vector<TensorPlan> const& tensors,
                                            std::map<std::string, std::string> const& metadata,
                                            bool with_crcs = true);

private:
    explicit SafetensorsWriter(NewFile file) : file_(std::move(file)) {}
    void finish_tensors();

    NewFile file_;
    std::vector<TensorPlan> tensors_;
    std::map<std::string, std::string> metadata_;
    std::vector<std::uint64_t> tensor_bytes_;
    std::uint64_t header_bytes_ = 0;  // With the eight of its length.
    std::uint64_t data_bytes_ = 0;
    std::size_t tensor_ = 0;  // The one that the next byte belongs to.
    std::uint64_t tensor_bytes_left_ = 0;
    std::uint32_t crc_ = 0;
    bool with_crcs_ = false;
};

}  // namespace dkv
