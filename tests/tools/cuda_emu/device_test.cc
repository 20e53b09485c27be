// What the environment makes of the device; each case asks a process of its own.
#include "tests/tools/cuda_emu/launch.h"
#include "tests/tools/cuda_emu/peer.h"

namespace dkv::test {
namespace {

TEST_CASE("without a driver the count is left unwritten and the code says why") {
    CHECK(Peer(Environment{{"CUDAEMU_DRIVER", "none"}}).ask("devices") ==
          "cudaErrorInsufficientDriver -1");
    CHECK(Peer(Environment{{"CUDAEMU_DRIVER", "stub"}}).ask("devices") ==
          "cudaErrorStubLibrary -1");
    CHECK(Peer(Environment{{"CUDAEMU_DRIVER", "no_device"}}).ask("devices") ==
          "cudaErrorNoDevice -1");
    CHECK(cudaErrorInsufficientDriver == 35);
    CHECK(cudaErrorStubLibrary == 34);
    CHECK(cudaErrorNoDevice == 100);
}

TEST_CASE("CUDA_VISIBLE_DEVICES chooses and orders devices, by ordinal or UUID") {
    auto const seen = [](char const* visible) {
        return Peer(Environment{{"CUDAEMU_DEVICES", "2"}, {"CUDA_VISIBLE_DEVICES", visible}})
            .ask("devices");
    };
    CHECK(Peer(Environment{{"CUDAEMU_DEVICES", "2"}}).ask("devices") == "cudaSuccess 2 224 225");
    CHECK(seen("1") == "cudaSuccess 1 225");
    CHECK(seen("1,0") == "cudaSuccess 2 225 224");
    CHECK(seen("GPU-e1") == "cudaSuccess 1 225");
    CHECK(seen("0,-1,1") == "cudaSuccess 1 224");  // What names none ends the list.
    CHECK(seen("") == "cudaErrorNoDevice -1");
    CHECK(seen("1,1") == "cudaErrorNoDevice -1");
}

TEST_CASE("more than the device has is refused, and no less is left") {
    std::size_t free_before = 0;
    std::size_t total = 0;
    REQUIRE(cudaMemGetInfo(&free_before, &total) == cudaSuccess);
    void* memory = nullptr;

    CHECK(cudaMalloc(&memory, total + 1) == cudaErrorMemoryAllocation);
    CHECK(cudaMallocAsync(&memory, total + 1, nullptr) == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaSuccess);

    std::size_t free_after = 0;
    REQUIRE(cudaMemGetInfo(&free_after, &total) == cudaSuccess);
    CHECK(free_after == free_before);
}

TEST_CASE("a copy whose direction its pointers do not have is refused, and one past the end") {
    OnDevice<int> const device(4);
    int host[8] = {};

    CHECK(cudaMemcpy(host, device.data(), 16, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, device.data(), 16, cudaMemcpyHostToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host, device.data(), 17, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaMemset(device.data(), 0, 17) == cudaErrorInvalidValue);
    CHECK(cudaMemset(host, 0, 4) == cudaErrorInvalidValue);
    static_cast<void>(cudaGetLastError());
}

TEST_CASE("a launch that no GPU would take is refused") {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    auto const refusal = [&] { return cudaemu::launch(config, nullptr, [] {}); };

    config.blockDim = dim3(1025);
    CHECK(refusal() == cudaErrorInvalidConfiguration);
    config.blockDim = dim3(32);
    config.gridDim = dim3(1, 65536);
    CHECK(refusal() == cudaErrorInvalidConfiguration);
    config.gridDim = dim3(0);
    CHECK(refusal() == cudaErrorInvalidConfiguration);
    config.gridDim = dim3(1);
    config.dynamicSmemBytes = (48 << 10) + 1;  // More needs cudaFuncSetAttribute.
    CHECK(refusal() == cudaErrorInvalidValue);
    static_cast<void>(cudaGetLastError());
}

TEST_CASE("the driver's functions are found by name and by the version that brought them") {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status{};

    CHECK(cudaGetDriverEntryPointByVersion("cuMemCreate", &found, 10020, 0, &status) ==
          cudaSuccess);
    CHECK(status == cudaDriverEntryPointSuccess);
    CHECK(cudaGetDriverEntryPointByVersion("cuMemCreate", &found, 9000, 0, &status) == cudaSuccess);
    CHECK(status == cudaDriverEntryPointVersionNotSufficent);
    CHECK(found == nullptr);
    CHECK(cudaGetDriverEntryPointByVersion("cuFly", &found, 13000, 0, &status) == cudaSuccess);
    CHECK(status == cudaDriverEntryPointSymbolNotFound);
}

}  // namespace
}  // namespace dkv::test
