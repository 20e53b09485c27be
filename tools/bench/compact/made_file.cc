#include "tools/bench/compact/made_file.h"

#include <bit>
#include <string>
#include <vector>

#include "protocol/container/dkv_plan.h"

namespace dkv::bench {
namespace {

constexpr Geometry kLlama3{
    .layers = 32, .q_heads = 32, .kv_heads = 8, .head_dim = 128, .dtype = Dtype::Bf16};
constexpr std::uint32_t kWindow = 32;

/// bf16 numbers in -1 … 1, never the same twice for a while.
class Numbers {
public:
    void fill(std::span<std::uint16_t> out) {
        for (std::uint16_t& element : out) {
            state_ ^= state_ << 13U;
            state_ ^= state_ >> 7U;
            state_ ^= state_ << 17U;
            auto const number = static_cast<float>(static_cast<std::int64_t>(state_)) * 0x1p-63F;
            element = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(number) >> 16U);
        }
    }

private:
    std::uint64_t state_ = 88172645463325252U;
};

std::uint64_t bytes_of_tensor(TensorPlan const& tensor) {
    std::uint64_t bytes = sizeof(std::uint16_t);
    for (std::uint64_t const extent : tensor.shape)
        bytes *= extent;
    return bytes;
}

}  // namespace

Result<std::filesystem::path> made_file(std::filesystem::path const& folder, std::uint32_t tokens) {
    auto const path = folder / ("llama-3-8b-" + std::to_string(tokens) + ".dkv");
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored)) return path;
    std::vector<std::uint32_t> const lengths(std::size_t{kLlama3.layers} * kLlama3.kv_heads,
                                             tokens);
    auto const plan = dkv_plan({.geometry = kLlama3,
                                .model = "llama-3-8b-shaped",
                                .prompt_tokens = tokens,
                                .query_rows = kWindow,
                                .lengths = lengths,
                                .with_sinks = {},
                                .rope = {},
                                .provenance = {}});
    auto writer = DKV_TRY(SafetensorsWriter::create(path, plan.tensors, plan.metadata));
    Numbers numbers;
    std::vector<std::uint16_t> block(std::size_t{1} << 19U);
    for (TensorPlan const& tensor : plan.tensors)
        for (std::uint64_t left = bytes_of_tensor(tensor); left > 0;) {
            auto const some = std::min<std::uint64_t>(left, block.size() * sizeof(std::uint16_t));
            auto const part = std::span(block).first(some / sizeof(std::uint16_t));
            numbers.fill(part);
            DKV_TRY(writer.append(std::as_bytes(part)));
            left -= some;
        }
    DKV_TRY(writer.commit());
    return path;
}

}  // namespace dkv::bench
