// A prompt's cache with numbers that every dtype holds exactly.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "sidecar/pipeline/job.h"

namespace dkv {

/// k / 64 with |k| < 128 has 7 significant bits and a small exponent: exact in f32, f16 and bf16.
inline void append_exact(std::vector<std::byte>& bytes, Dtype dtype, float value) {
    auto const bits = std::bit_cast<std::uint32_t>(value);
    std::uint32_t encoded = bits;
    if (dtype == Dtype::Bf16) encoded = bits >> 16U;
    if (dtype == Dtype::F16) {
        std::uint32_t const exponent = ((bits >> 23U) & 0xFFU) - 127 + 15;
        encoded =
            value == 0 ? 0 : (bits >> 31U) << 15U | exponent << 10U | ((bits >> 13U) & 0x3FFU);
    }
    std::byte raw[4];
    std::memcpy(raw, &encoded, sizeof(encoded));  // Little-endian: the low bytes come first.
    bytes.insert(bytes.end(), raw, raw + bytes_of(dtype));
}

enum class Order { HeadMajor, TokenMajor };

/// Rows of random numbers, in the dtype of a cache and as what they mean.
struct FakeRows {
    RowsView shape;  ///< Without data, for copies have their own.
    std::vector<std::byte> bytes;
    std::vector<double> values;  ///< In the order of `bytes`.

    RowsView view() const {
        RowsView view = shape;
        view.data = const_cast<std::byte*>(bytes.data());
        return view;
    }
    double at(std::uint32_t head, std::uint32_t token, std::uint32_t dim) const {
        return values[head * shape.head_stride + token * shape.token_stride + dim];
    }
};

inline FakeRows fake_rows(std::mt19937& random,
                          Dtype dtype,
                          std::uint32_t heads,
                          std::uint32_t tokens,
                          std::uint32_t head_dim,
                          Order order,
                          float scale = 1) {
    FakeRows rows;
    rows.shape = dense_rows(nullptr, dtype, heads, tokens, head_dim);
    if (order == Order::TokenMajor) {
        rows.shape.head_stride = head_dim;
        rows.shape.token_stride = std::uint64_t{heads} * head_dim;
    }
    for (std::size_t i = 0; i < std::size_t{heads} * tokens * head_dim; ++i) {
        float const value = (static_cast<float>(random() % 255) - 127) / 64 * scale;
        append_exact(rows.bytes, dtype, value);
        rows.values.push_back(value);
    }
    return rows;
}

struct FakeLayer {
    FakeRows keys;
    FakeRows values;
    FakeRows queries;
    std::vector<float> sinks = {};  ///< [q_heads], or none.

    LayerSource source() const {
        return {.keys = keys.view(),
                .values = values.view(),
                .queries = queries.view(),
                .scores = {},
                .scale = 0,
                .softcap = 0,
                .sink_logits = sinks};
    }
};

/// What `spec` describes, with numbers from `seed`. Attention is sharp in some layers and flat in
/// others, so that budgets differ.
inline std::vector<FakeLayer> fake_prompt(JobSpec const& spec,
                                          std::uint32_t seed,
                                          Order order = Order::HeadMajor) {
    std::mt19937 random(seed);
    Geometry const& g = spec.geometry;
    std::uint32_t const wanted = needs_of(spec).window;
    std::uint32_t const queries = wanted == 0 ? spec.params.window : wanted;
    std::vector<FakeLayer> layers;
    for (std::uint32_t layer = 0; layer < g.layers; ++layer) {
        float const sharpness = 1.0F / static_cast<float>(1U << layer % 3 * 2);
        layers.push_back(
            {.keys = fake_rows(random, g.dtype, g.kv_heads, spec.prompt_tokens, g.head_dim, order),
             .values =
                 fake_rows(random, g.dtype, g.kv_heads, spec.prompt_tokens, g.head_dim, order),
             .queries =
                 fake_rows(random, g.dtype, g.q_heads, queries, g.head_dim, order, sharpness)});
    }
    return layers;
}

}  // namespace dkv
