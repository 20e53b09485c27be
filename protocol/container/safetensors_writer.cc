#include "protocol/container/safetensors_writer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include <fmt/format.h>

#include "protocol/container/checksums.h"
#include "protocol/container/crc32.h"
#include "protocol/container/safetensors.h"

namespace dkv {
namespace {

constexpr std::size_t kAlignment = 64;  // A cache line, and any vector load.

/// Of each tensor. Their sum fits in 64 bits.
Result<std::vector<std::uint64_t>> sizes_of(std::vector<TensorPlan> const& tensors) {
    std::vector<std::uint64_t> sizes;
    std::set<std::string_view> names;
    std::uint64_t total = 0;
    for (TensorPlan const& tensor : tensors) {
        if (!names.insert(tensor.name).second)
            return invalid(fmt::format("there are two tensors {}", tensor.name));
        auto const element = element_bytes(tensor.dtype);
        if (!element)
            return invalid(fmt::format("{}: unknown dtype {}", tensor.name, tensor.dtype));
        std::uint64_t bytes = *element;
        bool overflow = false;
        for (std::uint64_t const extent : tensor.shape)
            overflow = __builtin_mul_overflow(bytes, extent, &bytes) || overflow;
        if (overflow || __builtin_add_overflow(total, bytes, &total))
            return invalid(fmt::format("{} [{}] does not fit in 64 bits", tensor.name,
                                       fmt::join(tensor.shape, ", ")));
        sizes.push_back(bytes);
    }
    return sizes;
}

/// The length, the JSON, and blanks up to the first tensor.
std::string header_of(std::vector<TensorPlan> const& tensors,
                      std::vector<std::uint64_t> const& sizes,
                      std::map<std::string, std::string> const& metadata) {
    auto header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::uint64_t begin = 0;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        header[tensors[i].name] = {{"dtype", tensors[i].dtype},
                                   {"shape", tensors[i].shape},
                                   {"data_offsets", {begin, begin + sizes[i]}}};
        begin += sizes[i];
    }
    std::string const json =
        header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    std::size_t const bytes =
        (kLengthBytes + json.size() + kAlignment - 1) / kAlignment * kAlignment;
    std::string text;
    for (unsigned shift = 0; shift < 64; shift += 8)
        text += static_cast<char>((bytes - kLengthBytes) >> shift & 0xffU);
    text += json;
    text.resize(bytes, ' ');
    return text;
}

std::map<std::string, std::string> with_room(std::map<std::string, std::string> metadata,
                                             std::vector<TensorPlan> const& tensors,
                                             bool with_crcs) {
    if (!with_crcs) return metadata;
    metadata[kHeaderCrcKey] = crc_text(0);
    for (TensorPlan const& tensor : tensors)
        metadata[crc_key(tensor.name)] = crc_text(0);
    return metadata;
}

std::span<std::byte const> bytes_of_text(std::string const& text) {
    return std::as_bytes(std::span(text));
}

}  // namespace

Result<SafetensorsWriter> SafetensorsWriter::create(std::filesystem::path const& path,
                                                    std::vector<TensorPlan> tensors,
                                                    std::map<std::string, std::string> metadata,
                                                    bool with_crcs,
                                                    std::filesystem::path const& like,
                                                    Links links) {
    auto sizes = DKV_TRY(sizes_of(tensors));
    SafetensorsWriter writer(DKV_TRY(NewFile::create(path, like, links)));
    writer.tensors_ = std::move(tensors);
    writer.tensor_bytes_ = std::move(sizes);
    writer.metadata_ = with_room(std::move(metadata), writer.tensors_, with_crcs);
    writer.with_crcs_ = with_crcs;
    auto const header = header_of(writer.tensors_, writer.tensor_bytes_, writer.metadata_);
    DKV_TRY(writer.file_.append(bytes_of_text(header)));
    writer.header_bytes_ = header.size();
    writer.data_bytes_ =
        std::accumulate(writer.tensor_bytes_.begin(), writer.tensor_bytes_.end(), std::uint64_t{0});
    if (!writer.tensors_.empty()) writer.tensor_bytes_left_ = writer.tensor_bytes_.front();
    writer.finish_tensors();
    return writer;
}

Result<std::uint64_t> SafetensorsWriter::file_bytes(
    std::vector<TensorPlan> const& tensors,
    std::map<std::string, std::string> const& metadata,
    bool with_crcs) {
    auto const sizes = DKV_TRY(sizes_of(tensors));
    auto const header = header_of(tensors, sizes, with_room(metadata, tensors, with_crcs));
    return std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{header.size()});
}

void SafetensorsWriter::finish_tensors() {
    while (tensor_ < tensors_.size() && tensor_bytes_left_ == 0) {
        if (with_crcs_) metadata_[crc_key(tensors_[tensor_].name)] = crc_text(crc_);
        crc_ = 0;
        if (++tensor_ < tensors_.size()) tensor_bytes_left_ = tensor_bytes_[tensor_];
    }
}

Result<void> SafetensorsWriter::append(std::span<std::byte const> bytes) {
    while (!bytes.empty()) {
        if (tensor_ == tensors_.size())
            return Error{ErrorCode::BadState,
                         fmt::format("{} bytes more than the tensors have", bytes.size())};
        auto const count =
            static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), tensor_bytes_left_));
        auto const piece = bytes.first(count);
        if (with_crcs_) crc_ = crc32(crc_, piece);
        DKV_TRY(file_.append(piece));
        tensor_bytes_left_ -= count;
        bytes = bytes.subspan(count);
        finish_tensors();
    }
    return {};
}

Result<void> SafetensorsWriter::commit() {
    if (tensor_ != tensors_.size())
        return Error{ErrorCode::BadState,
                     fmt::format("{} lacks {} bytes", tensors_[tensor_].name, tensor_bytes_left_)};
    if (with_crcs_) {
        auto const unsealed = header_of(tensors_, tensor_bytes_, metadata_);
        metadata_[kHeaderCrcKey] =
            crc_text(header_crc(std::string_view(unsealed).substr(kLengthBytes)));
        auto const header = header_of(tensors_, tensor_bytes_, metadata_);
        DKV_ASSERT(header.size() == header_bytes_);
        DKV_TRY(file_.rewrite(0, bytes_of_text(header)));
    }
    return file_.commit();
}

}  // namespace dkv
