// How much each layer or KV head of one model matters, as measured by `dkv calibrate`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "protocol/base/result.h"

namespace dkv {

/// Budgets in proportion to weight^alpha, at least floor of the mean.
struct Profile {
    std::string name;             ///< For people.
    std::uint32_t layers = 0;     ///< Compressed layers of the model.
    std::uint32_t heads = 0;      ///< KV heads of a layer, or 1: every head of a layer alike.
    std::vector<double> weights;  ///< [layers, heads], at least 0, one of them above.
    double alpha = 1;             ///< In 0 … 8.
    double floor = 0;             ///< In 0 … 1.
    std::uint32_t kernel = 0;     ///< Of the pooling that it was measured with; 0: unknown.
};

/// Errors: InvalidArgument, naming the value: an invalid shape, a weight that is negative
/// or not finite, no weight above 0, alpha or floor outside its range, an even kernel.
Result<void> check(Profile const& profile);

}  // namespace dkv
