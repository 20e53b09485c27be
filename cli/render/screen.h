// The screen that dkv watch redraws.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "cli/render/style.h"
#include "protocol/schema/dkv_generated.h"

namespace dkv::cli {

/// What sessions and engines are sorted by, the largest first; Age: the newest last, as they came.
enum class SortKey { Age, Tokens, Bytes, Peak, Busy };

/// What the screen shows. `error` non-empty: nothing else is fresh.
struct Screen {
    wire::StatusInfoT status;
    wire::InstanceListT instances;
    wire::SessionListT sessions;
    std::deque<std::string> events;
    std::string error;
    SortKey sort = SortKey::Age;

    struct Totals {
        std::uint64_t uptime_ms = 0;
        std::uint64_t sessions = 0;
        std::uint64_t bytes_dropped = 0;
        std::uint64_t bytes_back = 0;  ///< To the system and to engines' pools.
    };
    std::optional<Totals> before;  ///< At least a second ago: for rates. Nothing: none are shown.
};

Screen::Totals totals_of(wire::StatusInfoT const& status);

/// At most style.rows - 1 lines, none longer than style.columns.
std::string screen_text(Screen const& screen, Style const& style);

}  // namespace dkv::cli
