#include "tools/gpu/inputs.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <random>

#include "protocol/device/copy.h"

namespace dkv::gpu {
namespace {

/// From ±[0.5, 1), of any dtype.
std::vector<std::byte> random_elements(Dtype dtype, std::size_t count) {
    std::mt19937 random(1);
    std::vector<std::byte> bytes(count * bytes_of(dtype));
    for (std::size_t i = 0; i < count; ++i) {  // Sign, mantissa, and an exponent of our own.
        auto const bits = static_cast<std::uint32_t>(random());
        float const value = std::bit_cast<float>((bits & 0x807fffffU) | 0x3f000000U);
        auto const half = static_cast<std::uint16_t>((bits & 0x83ffU) | 0x3800U);
        auto const brain = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16U);
        if (dtype == Dtype::F32)
            std::memcpy(bytes.data() + 4 * i, &value, 4);
        else
            std::memcpy(bytes.data() + 2 * i, dtype == Dtype::F16 ? &half : &brain, 2);
    }
    return bytes;
}

std::vector<float> random_scores(std::size_t count) {
    std::mt19937 random(2);
    std::lognormal_distribution<float> attention(-9, 2);
    std::vector<float> scores(count);
    std::generate(scores.begin(), scores.end(), [&] { return attention(random); });
    return scores;
}

std::vector<std::int32_t> random_ids(Shape const& shape) {
    std::vector<std::int32_t> all(shape.tokens);
    std::iota(all.begin(), all.end(), 0);
    std::vector<std::int32_t> ids;
    std::mt19937 random(3);
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head)
        std::sample(all.begin(), all.end(), std::back_inserter(ids), kept_rows(shape), random);
    return ids;
}

Result<std::unique_ptr<cuda::DeviceMemory>> on_device(std::span<std::byte const> host) {
    auto memory = DKV_TRY(cuda::allocate_device_memory(host.size()));
    DKV_TRY(cuda::copy_to_device(memory->bytes().data(), host.data(), host.size(), nullptr));
    return memory;
}

}  // namespace

Result<Inputs> Inputs::create(Shape const& shape) {
    Inputs inputs;
    std::size_t const keys = std::size_t{shape.kv_heads} * shape.tokens * shape.head_dim;
    inputs.keys = DKV_TRY(on_device(random_elements(shape.dtype, keys)));
    // As many queries as accumulate wants; score takes the first of them.
    std::uint32_t const asking = shape.tokens <= kAccumulateTokensMax ? shape.tokens : kWindow;
    inputs.queries = DKV_TRY(on_device(
        random_elements(shape.dtype, std::size_t{shape.q_heads} * asking * shape.head_dim)));
    auto const scores = random_scores(shape.layers * columns(shape));
    inputs.scores = DKV_TRY(on_device(std::as_bytes(std::span(scores))));
    auto const ids = random_ids(shape);
    inputs.ids = DKV_TRY(on_device(std::as_bytes(std::span(ids))));
    inputs.out = DKV_TRY(cuda::allocate_device_memory(
        std::max<std::uint64_t>(ids.size() * row_bytes(shape), columns(shape) * sizeof(float))));
    return inputs;
}

}  // namespace dkv::gpu
