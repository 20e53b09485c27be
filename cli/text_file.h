#pragma once

#include <string>
#include <string_view>

#include "protocol/base/result.h"

namespace dkv::cli {

/// A file that appears whole or not at all. Errors: those of NewFile.
Result<void> write_text_file(std::string const& path, std::string_view text);

}  // namespace dkv::cli
