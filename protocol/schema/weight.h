// What a verified message unpacks to. FlatBuffers lets many places of a message name the same
// string, vector or table; the object API then makes a copy for each of them.
#pragma once

#include <cstddef>

#include "protocol/schema/dkv_generated.h"

namespace dkv {

/// Whether what the envelope unpacks to has at most `bytes_max` bytes of strings and of elements of
/// vectors. A message whose parts are not shared never has more than it has bytes itself. Takes
/// time in proportion to the parts, not to their sizes.
bool unpacks_within(wire::Envelope const& envelope, std::size_t bytes_max);

}  // namespace dkv
