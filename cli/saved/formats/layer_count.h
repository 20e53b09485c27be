// How many layers a cache has, when names alone say which there are: none may be missing.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "protocol/base/result.h"
#include "protocol/container/safetensors.h"

namespace dkv {

/// "12" is 12. Nothing for what is not a number as fmt writes it: "03", "+3", "3x".
std::optional<std::uint64_t> plain_number(std::string_view text);

/// Those of 0 … the largest that `found` lacks: "3", "2, 3, 4", "2, 3, 4 and 90 more"; empty: none.
std::string missing_numbers(std::set<std::uint64_t> const& found);

/// The layers 0 … n-1 that are all there.
///
/// Errors: CorruptData "no layer was found", "layer 3 is missing: the last one is 7",
/// "layers 2, 3, 4 are missing: the last one is 5", and for a layer beyond kLayersMax.
Result<std::uint32_t> count_layers(std::set<std::uint64_t> const& found);

/// The same of a container, whose names of a layer's tensors `layer_of` knows.
Result<std::uint32_t> count_layers(TensorTable const& table,
                                   std::optional<std::uint64_t> (*layer_of)(std::string_view name));

}  // namespace dkv
