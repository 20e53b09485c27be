#include "protocol/cuda/device.h"

#include <array>
#include <cstdio>

#include <cuda_runtime.h>  // The emulation says CUDAEMU in it.

#include "protocol/cuda/cuda_try.h"

namespace dkv::cuda {
namespace {

std::string uuid_text(cudaUUID_t const& uuid) {
    std::string text = "GPU";
    for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
        if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
        std::array<char, 3> hex{};
        std::snprintf(hex.data(), hex.size(), "%02x", static_cast<unsigned char>(uuid.bytes[i]));
        text += hex.data();
    }
    return text;
}

std::string version_text() {
    std::string text = "CUDA " + std::to_string(CUDART_VERSION / 1000) + "." +
                       std::to_string(CUDART_VERSION % 1000 / 10);
#ifdef CUDAEMU
    text += ", emulated on the CPU";
#endif
    return text;
}

bool means_no_gpu(cudaError_t status) {
    return status == cudaErrorStubLibrary || status == cudaErrorInsufficientDriver ||
           status == cudaErrorNoDevice;
}

}  // namespace

std::string_view built_with() noexcept {
    static std::string const text = version_text();
    return text;
}

Result<std::vector<Device>> devices() {
    int count = 0;
    if (cudaError_t const status = cudaGetDeviceCount(&count); status != cudaSuccess) {
        static_cast<void>(cudaGetLastError());
        if (means_no_gpu(status))
            return Error{ErrorCode::Unavailable,
                         "no GPU: " + std::string(cudaGetErrorString(status)) + " (" +
                             cudaGetErrorName(status) + ", code " +
                             std::to_string(static_cast<int>(status)) + ")"};
        return device_error(status, "cudaGetDeviceCount");
    }
    if (count == 0) return Error{ErrorCode::Unavailable, "no GPU: the driver knows none"};
    std::vector<Device> all;
    for (int ordinal = 0; ordinal < count; ++ordinal) {
        cudaDeviceProp properties{};
        DKV_CUDA_TRY(cudaGetDeviceProperties(&properties, ordinal));
        all.push_back(
            {.ordinal = ordinal,
             .uuid = uuid_text(properties.uuid),
             .name = properties.name,
             .major = properties.major,
             .minor = properties.minor,
             .bytes = properties.totalGlobalMem,
             .multiprocessors = static_cast<std::uint32_t>(properties.multiProcessorCount)});
    }
    return all;
}

Result<Device> find_device(std::string_view uuid) {
    auto const all = DKV_TRY(devices());
    std::string known;
    for (auto const& device : all) {
        if (device.uuid == uuid) return device;
        known += (known.empty() ? "" : ", ") + device.uuid;
    }
    return Error{ErrorCode::NotFound,
                 "device '" + std::string(uuid) + "' is not one of this process's: " + known};
}

Result<void> use_device(std::string_view uuid) {
    auto const device = DKV_TRY(find_device(uuid));
    DKV_CUDA_TRY(cudaSetDevice(device.ordinal));
    DKV_CUDA_TRY(cudaFree(nullptr));  // Makes the primary context now, not in the first op.
    return {};
}

}  // namespace dkv::cuda
