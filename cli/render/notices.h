// Events, one line each.
#pragma once

#include <string>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// "10:02:11.250  session_committed  0x… kept 512 of 3584 tokens": local time.
std::string notice_line(wire::NoticeT const& notice, Style const& style);

}  // namespace dkv::cli
