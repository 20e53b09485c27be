#include "protocol/base/printable.h"

namespace dkv {
namespace {

/// Bytes of the well-formed UTF-8 sequence at the start of `text`; 0: there is none.
std::size_t sequence_bytes(std::string_view text) noexcept {
    auto const at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    unsigned char const lead = at(0);
    if (lead < 0x80) return lead >= 0x20 && lead != 0x7f ? 1 : 0;
    std::size_t const bytes = lead >= 0xc2 && lead < 0xe0   ? 2
                              : lead >= 0xe0 && lead < 0xf0 ? 3
                              : lead >= 0xf0 && lead < 0xf5 ? 4
                                                            : 0;
    if (bytes == 0 || text.size() < bytes) return 0;
    for (std::size_t i = 1; i < bytes; ++i)
        if ((at(i) & 0xc0U) != 0x80) return 0;
    // Overlong forms, surrogates, beyond U+10FFFF, and the C1 control characters.
    bool const wrong = (lead == 0xe0 && at(1) < 0xa0) || (lead == 0xed && at(1) >= 0xa0) ||
                       (lead == 0xf0 && at(1) < 0x90) || (lead == 0xf4 && at(1) >= 0x90) ||
                       (lead == 0xc2 && at(1) < 0xa0);
    return wrong ? 0 : bytes;
}

}  // namespace

std::string printable(std::string_view text, std::size_t bytes_max) {
    std::string out;
    while (!text.empty()) {
        std::size_t const bytes = sequence_bytes(text);
        std::size_t const taken = bytes == 0 ? 1 : bytes;
        if (out.size() + taken > bytes_max) break;
        out += bytes == 0 ? std::string_view("?") : text.substr(0, bytes);
        text.remove_prefix(taken);
    }
    return out;
}

}  // namespace dkv
