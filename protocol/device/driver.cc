#include "protocol/device/driver.h"

#include "protocol/device/cuda_try.h"

namespace dkv::cuda {

Result<void*> find_driver_function(char const* name, unsigned version) {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult known = cudaDriverEntryPointSymbolNotFound;
    cudaError_t const status =
        cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &known);
    if (status == cudaSuccess && known == cudaDriverEntryPointSuccess && found != nullptr)
        return found;
    static_cast<void>(cudaGetLastError());
    std::string const why =
        status == cudaSuccess ? "" : std::string(": ") + cudaGetErrorName(status);
    return Error{ErrorCode::Unavailable, std::string("the CUDA driver has no ") + name +
                                             " of version " + std::to_string(version) + why};
}

Error driver_error(CUresult status, char const* call) {
    constexpr unsigned kVersion = 6000;
    char const* name = nullptr;
    auto const spell = driver_function<PFN_cuGetErrorName_v6000>("cuGetErrorName", kVersion);
    if (!spell || spell.value()(status, &name) != CUDA_SUCCESS) name = nullptr;
    return {ErrorCode::Device, std::string(call) + ": " + (name != nullptr ? name : "CUDA error") +
                                   " (" + std::to_string(static_cast<int>(status)) + ")"};
}

}  // namespace dkv::cuda
