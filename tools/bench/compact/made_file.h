#pragma once

#include <cstdint>
#include <filesystem>

#include "protocol/base/result.h"

namespace dkv::bench {

/// A saved cache of Llama-3-8B's shape in `folder`: the one that is there, or a new one. Small
/// random numbers, streamed; the queries of the last 32 tokens.
Result<std::filesystem::path> made_file(std::filesystem::path const& folder, std::uint32_t tokens);

}  // namespace dkv::bench
