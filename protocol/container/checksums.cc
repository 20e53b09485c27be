#include "protocol/container/checksums.h"

#include <charconv>
#include <span>

#include <fmt/format.h>

#include "protocol/container/crc32.h"

namespace dkv {
namespace {

constexpr std::string_view kZeros = "00000000";
// As SafetensorsWriter writes it; within a text of JSON its quotes would be escaped.
constexpr std::string_view kBefore = "\"crc32\":\"";

}  // namespace

std::string crc_key(std::string_view tensor) {
    return fmt::format("{}.{}", kHeaderCrcKey, tensor);
}

std::string crc_text(std::uint32_t crc) {
    return fmt::format("{:08x}", crc);
}

std::optional<std::uint32_t> parse_crc(std::string_view text) {
    std::uint32_t crc = 0;
    auto const* const end = text.data() + text.size();
    auto const [rest, error] = std::from_chars(text.data(), end, crc, 16);
    if (error != std::errc() || rest != end) return std::nullopt;
    return crc_text(crc) == text ? std::optional(crc) : std::nullopt;  // One way to write it.
}

std::uint32_t header_crc(std::string_view header) noexcept {
    auto const add = [](std::uint32_t crc, std::string_view text) {
        return crc32(crc, std::as_bytes(std::span(text)));
    };
    auto const found = header.find(kBefore);
    if (found == std::string_view::npos || header.size() - found < kBefore.size() + kZeros.size())
        return add(0, header);
    std::size_t const begin = found + kBefore.size();
    std::uint32_t const crc = add(add(0, header.substr(0, begin)), kZeros);
    return add(crc, header.substr(begin + kZeros.size()));
}

Result<void> check_header_crc(TensorTable const& table) {
    auto const said = table.metadata.find(kHeaderCrcKey);
    std::uint32_t const crc = header_crc(table.header);
    if (said != table.metadata.end() && parse_crc(said->second) == crc) return {};
    return Error{ErrorCode::CorruptData,
                 fmt::format("the header's CRC-32 is {}, not {}", crc_text(crc),
                             said == table.metadata.end() ? "given" : shown(said->second))};
}

}  // namespace dkv
