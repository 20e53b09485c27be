// A program that runs llama.cpp, started with libdkv_llama_preload in it.
#pragma once

#include <string>
#include <vector>

#include "protocol/base/result.h"

namespace dkv::llama {

/// Becomes `words`, a program and its arguments, with its endpoint in DKV_ENDPOINT. Comes back only
/// with a reason: NotFound, the library is not where dkv was installed, or no such program;
/// Unsupported, a program that loads no libraries; Io.
Error become_preloaded(std::vector<std::string> words, std::string const& endpoint);

}  // namespace dkv::llama
