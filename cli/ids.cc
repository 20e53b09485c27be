#include "cli/ids.h"

#include <charconv>

namespace dkv::cli {

Result<std::uint64_t> parse_id(std::string_view text) {
    auto digits = text;
    if (digits.starts_with("0x") || digits.starts_with("0X")) digits.remove_prefix(2);
    std::uint64_t id = 0;
    char const* const end = digits.data() + digits.size();
    auto const [stop, error] = std::from_chars(digits.data(), end, id, 16);
    if (digits.empty() || stop != end || error != std::errc() || id == 0)
        return Error{
            ErrorCode::InvalidArgument,
            "'" + std::string(text) + "' is not an id: up to 16 hexadecimal digits, not all 0"};
    return id;
}

CLI::Validator id_validator() {
    return {[](std::string& text) {
                auto const id = parse_id(text);
                return id ? std::string() : id.error().message;
            },
            ""};
}

}  // namespace dkv::cli
