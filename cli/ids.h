// Instance and session ids as people type them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <CLI/CLI.hpp>

#include "protocol/base/result.h"

namespace dkv::cli {

/// "0x1f", "1f" or all sixteen digits; always hexadecimal, as dkv prints them.
///
/// Errors: InvalidArgument, quoting the text; 0 too: it names no instance and no session.
Result<std::uint64_t> parse_id(std::string_view text);

/// Refuses, while the command line is parsed, what parse_id refuses.
CLI::Validator id_validator();

}  // namespace dkv::cli
