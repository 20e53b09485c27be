// How much each layer or KV head of one model matters, as measured by `dkv calibrate`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "protocol/base/result.h"

namespace dkv {

/// Predicts from K and V alone how much later text attends to a token: kernels/ops/surrogate.h.
struct Surrogate {
    std::uint32_t kv_heads = 0;
    std::uint32_t head_dim = 0;
    std::vector<float> weights;      ///< [layers, kv_heads, features()]
    std::vector<float> frequencies;  ///< [pairs] of the keys' rotation; empty: they have none.
    bool interleaved = false;        ///< Dims (2i, 2i + 1) turn together, else (i, i + pairs).

    bool operator==(Surrogate const&) const = default;

    std::size_t features() const noexcept {
        return 2 * std::size_t{kv_heads} * head_dim + 2 * std::size_t{kv_heads} + 1;
    }
};

/// The same for keys whose dims turn together in the other way.
Surrogate reordered(Surrogate const& surrogate, bool interleaved);

/// Budgets in proportion to weight^alpha, at least floor of the mean.
struct Profile {
    std::string name;             ///< For people.
    std::uint32_t layers = 0;     ///< Compressed layers of the model.
    std::uint32_t heads = 0;      ///< KV heads of a layer, or 1: every head of a layer alike.
    std::vector<double> weights;  ///< [layers, heads], at least 0, one of them above.
    double alpha = 1;             ///< In 0 … 8.
    double floor = 0;             ///< In 0 … 1.
    std::uint32_t kernel = 0;     ///< Of the pooling that it was measured with; 0: unknown.
    std::shared_ptr<Surrogate const> surrogate = {};  ///< Null: it has none.
};

/// With its surrogate, if it has one, for keys whose dims (2i, 2i + 1) turn together.
std::shared_ptr<Profile const> interleaved(std::shared_ptr<Profile const> profile);

/// Errors: InvalidArgument, naming the value: an invalid shape, a weight that is negative
/// or not finite, no weight above 0, alpha or floor outside its range, an even kernel, a surrogate
/// of another size or with a number that is not finite.
Result<void> check(Profile const& profile);

}  // namespace dkv
