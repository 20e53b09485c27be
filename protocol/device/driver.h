// The driver API of CUDA, found at run time: a program that is linked to libcuda does not start
// without a driver. For files that include CUDA's headers only.
//
//     auto const release = DKV_TRY(driver_function<PFN_cuMemRelease_v10020>("cuMemRelease",
//     10020)); DKV_DRIVER_TRY(release(handle));
//
// Used here (the emulation has to know them): cuGetErrorName 6000, cuMemGetAddressRange 3020,
// cuPointerGetAttribute, cuCtxGetCurrent and cuCtxSetCurrent 4000, cuMemRetainAllocationHandle
// 11000, cuMemExportToShareableHandle, cuMemImportFromShareableHandle,
// cuMemGetAllocationPropertiesFromHandle, cuMemCreate, cuMemRelease, cuMemGetAllocationGranularity,
// cuMemAddressReserve, cuMemAddressFree, cuMemMap, cuMemUnmap and cuMemSetAccess 10020,
// cuStreamWriteValue64 11070.
#pragma once

#include <string>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "protocol/base/result.h"

namespace dkv::cuda {

/// Has the driver looked for and begun. Errors: Unavailable, as devices(); Device.
Result<void> check_driver();

/// Errors: Unavailable, naming the function, where the driver does not have it or there is none.
Result<void*> find_driver_function(char const* name, unsigned version);

/// A pointer to a function; by itself, g++ takes Result's parameter for one that shadows.
template <class Function>
struct DriverFunction {
    Function pointer;
    template <class... Argument>
    CUresult operator()(Argument... argument) const {
        return pointer(argument...);
    }
};

/// The function as of that version of CUDA: its type's suffix.
template <class Function>
Result<DriverFunction<Function>> driver_function(char const* name, unsigned version) {
    auto* const found = DKV_TRY(find_driver_function(name, version));
    return DriverFunction<Function>{reinterpret_cast<Function>(found)};
}

/// "cuMemCreate(…): CUDA_ERROR_OUT_OF_MEMORY (2)"
Error driver_error(CUresult status, char const* call);

}  // namespace dkv::cuda

/// Returns a Device error from the enclosing function unless `call` is CUDA_SUCCESS.
#define DKV_DRIVER_TRY(call)                                                    \
    do {                                                                        \
        if (CUresult const dkv_status_ = (call); dkv_status_ != CUDA_SUCCESS) { \
            return ::dkv::cuda::driver_error(dkv_status_, #call);               \
        }                                                                       \
    } while (false)
