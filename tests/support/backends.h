// One test body, every backend that this machine has.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "kernels/backend.h"
#include "tests/support/on_device.h"
#include "tests/support/results.h"

namespace dkv::test {

/// The emulation where that was linked, a GPU where there is one, or null.
inline std::unique_ptr<Backend> device() {
    auto cuda = make_cuda_backend();
    if (cuda) return std::move(cuda).value();
    bool const absent =
        cuda.error().code == ErrorCode::Unsupported || cuda.error().code == ErrorCode::Unavailable;
    DOCTEST_REQUIRE_MESSAGE((absent && std::getenv("DKV_REQUIRE_CUDA") == nullptr),
                            cuda.error().message);
    return nullptr;
}

/// The same, with arguments in the host's memory.
inline std::unique_ptr<Backend> device_from_host() {
    auto cuda = device();
    return cuda == nullptr ? nullptr : on_device(std::move(cuda));
}

inline std::vector<std::unique_ptr<Backend>> backends() {
    std::vector<std::unique_ptr<Backend>> all;
    all.push_back(make_cpu_backend(1));
    all.push_back(make_cpu_backend(2));
    if (auto cuda = device_from_host()) all.push_back(std::move(cuda));
    return all;
}

/// Runs `body` once for each backend; each run is a doctest subcase with the backend's name.
template <class Body>
void for_each_backend(Body body) {
    for (auto const& backend : backends()) {
        std::string const name(backend->name());
        DOCTEST_SUBCASE(name.c_str()) {
            body(*backend);
        }
    }
}

}  // namespace dkv::test
