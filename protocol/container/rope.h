#pragma once

#include <cstdint>
#include <string>

namespace dkv {

/// What rotates the keys.
struct RopeFacts {
    double theta = 0;  ///< 0: not known.
    /// Adjacent pairs of dims turn together (llama.cpp's NORM), instead of the two halves (HF).
    bool interleaved = false;
    /// Whether `interleaved` is known. llama.cpp saves either order and does not say which.
    bool order_known = true;
    /// Hugging Face and mlx-lm turn pairs in this model, too (Cohere, GLM, GPT-J): its keys have
    /// one order everywhere.
    bool model_interleaved = false;
    std::uint32_t dims = 0;  ///< 0: all of them.
    /// A scaling that is not plain rope, as its model's config has it (JSON); empty: plain.
    std::string scaling = {};
};

}  // namespace dkv
