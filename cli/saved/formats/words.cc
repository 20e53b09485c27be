#include "cli/saved/formats/words.h"

#include <cmath>

#include <fmt/format.h>

#include "protocol/container/dkv_plan.h"

namespace dkv {

std::optional<Dtype> cache_dtype(std::string_view word) noexcept {
    if (word == "F32") return Dtype::F32;
    if (word == "F16") return Dtype::F16;
    if (word == "BF16") return Dtype::Bf16;
    return std::nullopt;
}

Result<Dtype> need_cache_dtype(std::string_view tensor, std::string_view word) {
    if (auto const dtype = cache_dtype(word)) return *dtype;
    bool const quantised = word.starts_with("F8_") || word.starts_with("F6_") || word == "F4" ||
                           word == "I8" || word == "U8" || word == "U32";
    return unsupported(fmt::format("{} is {}, not F32, F16 or BF16{}", tensor, word,
                                   quantised ? ": rows that were quantised are not read; save the "
                                               "cache without quantising it"
                                             : ""));
}

std::string_view metadata_text(Metadata const& metadata, std::string_view key) {
    auto const found = metadata.find(key);
    return found == metadata.end() ? std::string_view() : found->second;
}

Result<double> metadata_number(Metadata const& metadata, std::string_view key) {
    auto const found = metadata.find(key);
    if (found == metadata.end()) return 0.0;
    auto const value = number_of<double>(found->second);
    if (!value || !std::isfinite(*value) || *value < 0)
        return corrupt(fmt::format("the metadata's {} is not a number of at least 0", key));
    return *value;
}

Result<RopeFacts> metadata_rope(Metadata const& metadata) {
    RopeFacts rope;
    rope.theta = DKV_TRY(metadata_number(metadata, "rope.theta"));
    auto const turns = metadata_text(metadata, "rope.interleaved");
    if (!turns.empty() && turns != "true" && turns != "false" && turns != kUnknownOrder)
        return corrupt("the metadata's rope.interleaved is neither true nor false");
    rope.interleaved = turns == "true";
    rope.order_known = turns != kUnknownOrder;
    auto const own = metadata_text(metadata, "rope.model_interleaved");
    if (!own.empty() && own != "true" && own != "false")
        return corrupt("the metadata's rope.model_interleaved is neither true nor false");
    rope.model_interleaved = own == "true";
    if (auto const dims = metadata_text(metadata, "rope.dims"); !dims.empty()) {
        auto const count = number_of<std::uint32_t>(dims);
        if (!count) return corrupt("the metadata's rope.dims is not a count");
        rope.dims = *count;
    }
    rope.scaling = metadata_text(metadata, "rope.scaling");
    return rope;
}

void apply_options(OpenOptions const& options, CacheFacts& facts) {
    if (!options.model.empty()) facts.model = options.model;
    if (options.rope.theta != 0) facts.rope = options.rope;
}

}  // namespace dkv
