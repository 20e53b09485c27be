#pragma once

#include <cstdint>
#include <string>

namespace dkv {

/// What rotates the keys. theta 0: nobody said.
struct RopeFacts {
    double theta = 0;
    /// Adjacent pairs of dims turn together (llama.cpp's NORM), instead of the two halves (HF).
    bool interleaved = false;
    std::uint32_t dims = 0;  ///< 0: all of them.
    /// A scaling that is not plain rope, as its model's config has it (JSON); empty: plain.
    std::string scaling = {};
};

}  // namespace dkv
