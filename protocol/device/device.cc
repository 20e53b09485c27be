#include "protocol/device/device.h"

#include <array>
#include <cstdio>

#include <cuda_runtime.h>  // The emulation says CUDAEMU in it.

#include "protocol/device/cuda_try.h"
#include "protocol/device/driver.h"

namespace dkv::cuda {
namespace {

/// nvidia-smi and CUDA_VISIBLE_DEVICES say "MIG-…" of a part of a GPU; the 16 bytes are the same.
std::string_view without_kind(std::string_view uuid) {
    bool const has_kind = uuid.starts_with("GPU-") || uuid.starts_with("MIG-");
    return has_kind ? uuid.substr(4) : uuid;
}

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

/// At least 1. Errors: those of devices().
Result<int> count_devices() {
    int count = 0;
    if (cudaError_t const status = cudaGetDeviceCount(&count); status != cudaSuccess) {
        static_cast<void>(cudaGetLastError());
        if (means_no_gpu(status))
            return Error{ErrorCode::Unavailable,
                         "no GPU: " + std::string(cudaGetErrorString(status)) + " (" +
                             cudaGetErrorName(status) + ", code " +
                             std::to_string(static_cast<int>(status)) + ")"};
        auto error = device_error(status, "cudaGetDeviceCount");
        if (status == cudaErrorInitializationError)
            error.message +=
                "; CUDA does not survive fork(): start processes that use it by spawn or exec";
        return error;
    }
    if (count == 0) return Error{ErrorCode::Unavailable, "no GPU: the driver knows none"};
    return count;
}

}  // namespace

std::string_view built_with() noexcept {
    static std::string const text = version_text();
    return text;
}

Result<void> check_driver() {
    DKV_TRY(count_devices());
    return {};
}

Result<std::vector<Device>> devices() {
    int const count = DKV_TRY(count_devices());
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
        if (without_kind(device.uuid) == without_kind(uuid)) return device;
        known += (known.empty() ? "" : ", ") + device.uuid;
    }
    return Error{ErrorCode::NotFound,
                 "device '" + std::string(uuid) + "' is not one of this process's: " + known};
}

Result<void> use_device(std::string_view uuid) {
    auto const device = DKV_TRY(find_device(uuid));
    // Makes the primary context now (since CUDA 12), not in the first op.
    cudaError_t const status = cudaSetDevice(device.ordinal);
    if (status != cudaErrorDevicesUnavailable) {
        DKV_CUDA_TRY(status);
        return {};
    }
    static_cast<void>(cudaGetLastError());
    auto error = device_error(status, "cudaSetDevice");
    error.message +=
        "; in compute mode Exclusive Process one process has it: nvidia-smi -c 0, or MPS";
    return error;
}

Result<void> check_alive(std::string_view uuid) {
    auto const device = DKV_TRY(find_device(uuid));
    cudaError_t status = cudaSetDevice(device.ordinal);
    if (status == cudaSuccess) status = cudaStreamQuery(nullptr);
    static_cast<void>(cudaGetLastError());
    switch (status) {
        case cudaSuccess:
        case cudaErrorNotReady:
        case cudaErrorMemoryAllocation:    // There may be room later,
        case cudaErrorDevicesUnavailable:  // and the process that holds it may end.
            return {};
        default: return device_error(status, "cudaStreamQuery");
    }
}

}  // namespace dkv::cuda
