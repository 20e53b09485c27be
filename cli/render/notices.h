// Events, one line each, and the screen that dkv watch redraws.
#pragma once

#include <deque>
#include <string>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// "10:02:11.250  session_committed  0x… kept 512 of 3584 tokens": local time.
std::string notice_line(wire::NoticeT const& notice, Style const& style);

/// What the screen of dkv watch shows. `error` non-empty: nothing else is fresh.
struct Screen {
    wire::StatusInfoT status;
    wire::InstanceListT instances;
    wire::SessionListT sessions;
    std::deque<std::string> events;
    std::string error;
};

/// At most style.rows - 1 lines, none longer than style.columns.
std::string screen_text(Screen const& screen, Style const& style);

}  // namespace dkv::cli
