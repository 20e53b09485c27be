// A queue on the first device, and values that a test has no use without.
#pragma once

#include <memory>
#include <utility>

#include <doctest/doctest.h>

#include "kernels/cuda/queue.h"
#include "protocol/device/device.h"
#include "tests/support/results.h"

namespace dkv::test {

template <class T>
T value_of(Result<T> result) {
    REQUIRE(result);
    return std::move(result).value();
}

inline std::unique_ptr<cuda::Queue> make_queue() {
    REQUIRE(cuda::use_device(value_of(cuda::devices()).front().uuid));
    return value_of(cuda::Queue::create(0));
}

}  // namespace dkv::test
