// One thing wrong with a right message. Works on its bytes by the schema's own table of types:
// every field of every message is found, those that are added later, too.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tests/fuzz/random.h"

namespace dkv::fuzz {

enum class Wrong : std::uint8_t {
    Nothing,   ///< Right as it is, though perhaps not in this state.
    Number,    ///< 0, the largest, NaN, another's id, a word that is unknown, a neighbour ...
    Text,      ///< Empty, endless, control characters, no UTF-8.
    List,      ///< Empty, one too many, very many.
    Missing,   ///< A field, or a whole table, is not there.
    Offset,    ///< A part is another part, or outside.
    Bits,      ///< A few are flipped.
    Cut,       ///< Its end is missing.
    Longer,    ///< Something comes behind it.
    Sender,    ///< Over another connection, from another process, another user, or over TCP.
    Repeated,  ///< Twice.
};
inline constexpr auto kWrongs = {Wrong::Nothing, Wrong::Number, Wrong::Text,    Wrong::List,
                                 Wrong::Missing, Wrong::Offset, Wrong::Bits,    Wrong::Cut,
                                 Wrong::Longer,  Wrong::Sender, Wrong::Repeated};
std::string_view name_of(Wrong wrong) noexcept;

/// Spoils the bytes of a right envelope. `numbers`: ids that mean something at the moment. False:
/// this message has nothing of that kind, and is as it was. Sender and Repeated are the caller's.
bool spoil(std::vector<std::uint8_t>& bytes,
           Wrong wrong,
           Random& random,
           std::span<std::uint64_t const> numbers);

}  // namespace dkv::fuzz
