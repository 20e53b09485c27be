#include "protocol/device/capture_check.h"
#include "protocol/device/driver.h"
#include "protocol/device/events.h"

namespace dkv::cuda {

Result<void> write_timeline(void* word, std::uint64_t value, void* stream) {
    auto const queue = static_cast<cudaStream_t>(stream);
    DKV_TRY(check_not_captured(queue));
    auto const write =
        DKV_TRY(driver_function<PFN_cuStreamWriteValue64_v11070>("cuStreamWriteValue64", 11070));
    // The default flags order it behind every write that the stream made before.
    DKV_DRIVER_TRY(write(queue, reinterpret_cast<CUdeviceptr>(word), value,
                         static_cast<unsigned>(CU_STREAM_WRITE_VALUE_DEFAULT)));
    return {};
}

}  // namespace dkv::cuda
