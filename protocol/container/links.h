#pragma once

#include <cstdint>

namespace dkv {

/// Of a name that is a link: others may have put it into a folder that they can write to.
enum class Links : std::uint8_t { Follow, Refuse };

}  // namespace dkv
