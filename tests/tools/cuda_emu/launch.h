// Launches for the emulation's own tests: small kernels, no queue, errors fail the test.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <cuda_runtime.h>
#include <doctest/doctest.h>

namespace dkv::test {

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...),
            dim3 grid,
            dim3 block,
            std::size_t shared_bytes,
            Arguments&&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    REQUIRE(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...) ==
            cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
}

/// Device memory with an upload and a download.
template <class T>
class OnDevice {
public:
    explicit OnDevice(std::size_t count) : count_(count) {
        REQUIRE(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)) == cudaSuccess);
    }
    explicit OnDevice(std::vector<T> const& host) : OnDevice(host.size()) {
        REQUIRE(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice) ==
                cudaSuccess);
        REQUIRE(cudaDeviceSynchronize() == cudaSuccess);  // Another process may read it.
    }
    OnDevice(OnDevice const&) = delete;
    OnDevice& operator=(OnDevice const&) = delete;
    ~OnDevice() { static_cast<void>(cudaFree(data_)); }

    T* data() const { return data_; }
    std::vector<T> fetch() const {
        std::vector<T> host(count_);
        REQUIRE(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost) ==
                cudaSuccess);
        return host;
    }

private:
    T* data_ = nullptr;
    std::size_t count_;
};

}  // namespace dkv::test
