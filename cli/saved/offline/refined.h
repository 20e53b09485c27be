// Mixed bits: which rows of a file to come are refined. The best of each head, as its policy ranks
// them, then the newest.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dkv::offline {

/// Of every head's rows, at least, once no token is missing. Of `kept` of the tokens, 0 … 1, it is
/// kRefinedShare · kept: the fewer there are, the more is one more of them worth.
inline constexpr double kRefinedShare = 0.25;

/// Of rows that are not refined, as many as the prompt has tokens are 1: into what has the bytes of
/// `rows` fits this share of the tokens, with what refines them.
double kept_in_bytes_of(double rows);

/// [layers] how many rows are refined. `lengths` [layers, kv_heads].
std::vector<std::uint32_t> refined_counts(double share,
                                          std::span<std::uint32_t const> lengths,
                                          std::uint32_t layers);

/// One head's rows: the positions it keeps, ascending, and their ranks, the best first; the window
/// has none.
struct HeadToRefine {
    std::span<std::int32_t const> positions;
    std::span<std::int32_t const> ranked;
};

/// Rows of a layer that lie head after head, ascending.
std::vector<std::int32_t> refined_rows(double share, std::span<HeadToRefine const> heads);

}  // namespace dkv::offline
