#include "cli/saved/formats/turn_keys.h"

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numbers>
#include <optional>

#include <fmt/format.h>

#include "protocol/base/elements.h"
#include "protocol/container/safetensors.h"

namespace dkv {
namespace {

/// A positive number of a scaling's; nothing where there is none.
std::optional<double> positive(nlohmann::json const& scaling, char const* key) {
    auto const found = scaling.find(key);
    if (found == scaling.end() || !found->is_number()) return std::nullopt;
    auto const value = found->get<double>();
    return std::isfinite(value) && value > 0 ? std::optional(value) : std::nullopt;
}

/// Llama 3.1's: what turns slowly turns `factor` times slower still, with a ramp between.
struct Llama3 {
    double factor = 1;
    double low = 1;
    double high = 1;
    double context = 1;

    double scaled(double frequency) const {
        double const turns = context * frequency / (2 * std::numbers::pi);  // Over the context.
        if (turns < low) return frequency / factor;
        if (turns > high) return frequency;
        double const share = (turns - low) / (high - low);
        return (1 - share) * frequency / factor + share * frequency;
    }
};

/// The frequencies as `text`, a model config's rope_scaling, has them. Only such as are the same at
/// every length can be turned back.
Result<void> scale(std::string const& text, std::vector<double>& frequencies) {
    Error const refusal{
        ErrorCode::Unsupported,
        fmt::format("the keys' positions must change, and their rope is scaled: {}", shown(text))};
    auto const scaling = nlohmann::json::parse(text, nullptr, false);
    if (!scaling.is_object()) return refusal;
    auto const type = scaling.contains("rope_type") ? scaling["rope_type"]
                                                    : scaling.value("type", nlohmann::json());
    if (type == "default") return {};
    auto const factor = positive(scaling, "factor");
    if (!factor) return refusal;
    if (type == "linear") {
        for (double& frequency : frequencies)
            frequency /= *factor;
        return {};
    }
    auto const low = positive(scaling, "low_freq_factor");
    auto const high = positive(scaling, "high_freq_factor");
    auto const context = positive(scaling, "original_max_position_embeddings");
    if (type != "llama3" || !low || !high || !context || *low >= *high) return refusal;
    Llama3 const llama{.factor = *factor, .low = *low, .high = *high, .context = *context};
    for (double& frequency : frequencies)
        frequency = llama.scaled(frequency);
    return {};
}

}  // namespace

Result<KeyTurner> KeyTurner::create(RopeFacts const& rope, std::uint32_t head_dim, Dtype dtype) {
    if (rope.theta == 0)
        return Error{ErrorCode::Unsupported,
                     "the keys' positions must change, but their rope theta is unknown"};
    std::uint32_t const dims = rope.dims == 0 ? head_dim : rope.dims;
    if (dims % 2 != 0 || dims > head_dim)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("rope over {} dims, of rows of {}", dims, head_dim)};
    KeyTurner turner;
    for (std::uint32_t pair = 0; pair < dims / 2; ++pair)
        turner.frequencies_.push_back(std::pow(rope.theta, -2.0 * pair / dims));
    if (!rope.scaling.empty()) DKV_TRY(scale(rope.scaling, turner.frequencies_));
    turner.interleaved_ = rope.interleaved;
    turner.dtype_ = dtype;
    return turner;
}

void KeyTurner::turn(std::span<std::byte> row, std::int64_t by) const {
    if (by == 0) return;
    std::size_t const pairs = frequencies_.size();
    std::size_t const element = bytes_of(dtype_);
    for (std::size_t pair = 0; pair < pairs; ++pair) {
        std::byte* const a = row.data() + (interleaved_ ? 2 * pair : pair) * element;
        std::byte* const b = row.data() + (interleaved_ ? 2 * pair + 1 : pairs + pair) * element;
        double const angle = static_cast<double>(by) * frequencies_[pair];
        double const cosine = std::cos(angle);
        double const sine = std::sin(angle);
        double const x = static_cast<double>(load_f32(a, dtype_));
        double const y = static_cast<double>(load_f32(b, dtype_));
        store_f32(a, dtype_, static_cast<float>(x * cosine - y * sine));
        store_f32(b, dtype_, static_cast<float>(y * cosine + x * sine));
    }
}

}  // namespace dkv
