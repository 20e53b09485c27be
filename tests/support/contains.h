// Whether a text has a part, for checks of messages and of what commands print.
#pragma once

#include <string_view>

namespace dkv::test {

inline bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

}  // namespace dkv::test
