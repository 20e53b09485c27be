// The refusal of a file that is of no known format: what it seems to be instead.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "protocol/base/result.h"

namespace dkv {

/// "dkv, hf, mlx-lm, llama-state, llama-slot; folders of vllm and lmcache"
std::string known_formats();

/// Whether it begins as a safetensors file does, if only with a part of one.
bool looks_like_safetensors(std::span<std::byte const> bytes) noexcept;

/// "none of the formats I know (dkv, hf …): a PDF, it begins with 25 50 44 46 2d 31 2e 37
/// "%PDF-1.7"", and what to do where that is known. Unsupported for a format of another program,
/// else CorruptData.
Error unknown_file(std::span<std::byte const> bytes);

}  // namespace dkv
