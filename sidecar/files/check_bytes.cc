#include "sidecar/files/check_bytes.h"

#include <algorithm>
#include <cstring>

#include "protocol/files/crc32.h"

namespace dkv {
namespace {

// Fits a core's own cache: what the CRC has read, the other loop finds there.
constexpr std::size_t kBlockBytes = std::size_t{64} << 10U;

/// Numbers whose exponent is all ones: branch-free, so that compilers use whole vectors.
template <class Word>
bool has_ones(std::byte const* data, std::size_t count, Word exponent) noexcept {
    Word found = 0;
    for (std::size_t i = 0; i < count; ++i) {
        Word word = 0;
        std::memcpy(&word, data + i * sizeof word, sizeof word);
        found |= static_cast<Word>((word & exponent) == exponent ? 1 : 0);
    }
    return found != 0;
}

bool has_not_finite(std::span<std::byte const> bytes, Dtype dtype) noexcept {
    switch (dtype) {
        case Dtype::F32: return has_ones<std::uint32_t>(bytes.data(), bytes.size() / 4, 0x7f800000);
        case Dtype::F16: return has_ones<std::uint16_t>(bytes.data(), bytes.size() / 2, 0x7c00);
        case Dtype::Bf16: return has_ones<std::uint16_t>(bytes.data(), bytes.size() / 2, 0x7f80);
    }
    return false;
}

}  // namespace

BytesReport check_bytes(std::span<std::byte const> bytes,
                        std::optional<Dtype> floats,
                        bool with_crc) noexcept {
    BytesReport report;
    for (std::size_t begin = 0; begin < bytes.size(); begin += kBlockBytes) {
        auto const block = bytes.subspan(begin, std::min(kBlockBytes, bytes.size() - begin));
        if (with_crc) report.crc = crc32(report.crc, block);
        if (!floats || report.not_finite || !has_not_finite(block, *floats)) continue;
        std::size_t const element = bytes_of(*floats);
        for (std::size_t at = 0; at < block.size() && !report.not_finite; at += element)
            if (has_not_finite(block.subspan(at, element), *floats))
                report.not_finite = (begin + at) / element;
    }
    return report;
}

}  // namespace dkv
