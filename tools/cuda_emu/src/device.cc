// Which devices there are, and what they say of themselves.
//
//   CUDAEMU_DRIVER=none|stub|no_device   the codes 35, 34, 100
//   CUDAEMU_DEVICES=<n>                  1 without it
//   CUDAEMU_MEMORY=<bytes>               of each device; 8 GiB without it
//   CUDA_VISIBLE_DEVICES                 ordinals or UUIDs, as CUDA reads it
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <unistd.h>
#include <vector>

#include <cudaemu/fault.h>

#include "tools/cuda_emu/src/architecture.h"
#include "tools/cuda_emu/src/context.h"
#include "tools/cuda_emu/src/runtime.h"

namespace cudaemu {
namespace {

constexpr unsigned kPhysicalMax = 16;
thread_local cudaError_t last_error = cudaSuccess;
std::atomic<cudaError_t> lost_by{cudaSuccess};  // NOLINT

std::string_view setting(char const* name, char const* otherwise) {
    char const* const value = std::getenv(name);
    return value == nullptr ? otherwise : value;
}

[[noreturn]] void bad_setting(char const* name, char const* wanted) {
    std::fprintf(stderr, "cudaemu: %s is '%s', not %s\n", name, std::getenv(name), wanted);
    std::abort();
}

std::size_t number(char const* name, std::size_t otherwise) {
    char const* const text = std::getenv(name);
    if (text == nullptr) return otherwise;
    char* end = nullptr;
    unsigned long long const value = std::strtoull(text, &end, 10);
    if (end == text || *end != '\0') bad_setting(name, "a number");
    return value;
}

CUuuid uuid_of(unsigned physical) {
    CUuuid uuid{};
    for (unsigned i = 0; i < sizeof uuid.bytes; ++i)
        uuid.bytes[i] = static_cast<char>(0xE0 + physical + 16 * i);
    return uuid;
}

std::string text_of(CUuuid const& uuid) {
    std::string text = "GPU";
    for (unsigned i = 0; i < sizeof uuid.bytes; ++i) {
        if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
        char hex[3];
        std::snprintf(hex, sizeof hex, "%02x", static_cast<unsigned char>(uuid.bytes[i]));
        text += hex;
    }
    return text;
}

/// CUDA_VISIBLE_DEVICES' devices up to the first word that names none, or one for a second time.
std::vector<unsigned> visible(unsigned physical_count) {
    std::vector<unsigned> result;
    char const* const list = std::getenv("CUDA_VISIBLE_DEVICES");
    if (list == nullptr) {
        for (unsigned i = 0; i < physical_count; ++i)
            result.push_back(i);
        return result;
    }
    std::string_view rest = list;
    while (!rest.empty()) {
        std::string const word(rest.substr(0, rest.find(',')));
        rest.remove_prefix(std::min(rest.size(), word.size() + 1));
        unsigned found = physical_count;
        if (word.starts_with("GPU-")) {
            for (unsigned i = 0; i < physical_count; ++i)
                if (text_of(uuid_of(i)).starts_with(word)) found = i;
        } else if (!word.empty() && word.find_first_not_of("0123456789") == std::string::npos) {
            found = static_cast<unsigned>(std::strtoul(word.c_str(), nullptr, 10));
        }
        if (found >= physical_count) return result;
        if (std::find(result.begin(), result.end(), found) != result.end()) return {};
        result.push_back(found);
    }
    return result;
}

std::vector<Device> const& devices() {
    static std::vector<Device> const all = [] {
        auto const count = static_cast<unsigned>(number("CUDAEMU_DEVICES", 1));
        if (count > kPhysicalMax) bad_setting("CUDAEMU_DEVICES", "at most 16");
        std::vector<Device> result;
        for (unsigned const physical : visible(count))
            result.push_back(
                {physical, uuid_of(physical), number("CUDAEMU_MEMORY", std::size_t{8} << 30U)});
        return result;
    }();
    return all;
}

cudaError_t driver_state() {
    std::string_view const driver = setting("CUDAEMU_DRIVER", "");
    if (driver == "none") return cudaErrorInsufficientDriver;
    if (driver == "stub") return cudaErrorStubLibrary;
    if (driver == "no_device") return cudaErrorNoDevice;
    if (!driver.empty()) bad_setting("CUDAEMU_DRIVER", "none, stub or no_device");
    return devices().empty() ? cudaErrorNoDevice : cudaSuccess;
}

int attribute(cudaDeviceAttr attribute) {
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
        case cudaDevAttrMaxBlockDimX:
        case cudaDevAttrMaxBlockDimY: return 1024;
        case cudaDevAttrMaxBlockDimZ: return 64;
        case cudaDevAttrMaxGridDimX: return 0x7fffffff;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: return 65535;
        case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            return static_cast<int>(architecture().shared_block_max);
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            return static_cast<int>(architecture().shared);
        case cudaDevAttrReservedSharedMemoryPerBlock: return 1 << 10;
        case cudaDevAttrTotalConstantMemory: return 64 << 10;
        case cudaDevAttrWarpSize: return 32;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
        case cudaDevAttrMultiProcessorCount: return 4;
        case cudaDevAttrMaxThreadsPerMultiProcessor: return architecture().threads;
        case cudaDevAttrMaxBlocksPerMultiprocessor: return architecture().blocks;
        case cudaDevAttrComputeCapabilityMajor: return architecture().number / 10;
        case cudaDevAttrComputeCapabilityMinor: return architecture().number % 10;
        case cudaDevAttrL2CacheSize: return 4 << 20;
        case cudaDevAttrAsyncEngineCount: return 2;
        case cudaDevAttrMemoryPoolSupportedHandleTypes: return cudaMemHandleTypePosixFileDescriptor;
        case cudaDevAttrGlobalMemoryBusWidth: return 5120;
        case cudaDevAttrConcurrentKernels:
        case cudaDevAttrUnifiedAddressing:
        case cudaDevAttrStreamPrioritiesSupported:
        case cudaDevAttrGlobalL1CacheSupported:
        case cudaDevAttrLocalL1CacheSupported:
        case cudaDevAttrManagedMemory:
        case cudaDevAttrCanMapHostMemory:
        case cudaDevAttrHostRegisterSupported:
        case cudaDevAttrMemoryPoolsSupported:
        case cudaDevAttrIpcEventSupport: return 1;
        default: return 0;
    }
}

cudaError_t check_ordinal(int ordinal) {
    return ordinal >= 0 && ordinal < device_count() ? cudaSuccess : cudaErrorInvalidDevice;
}

}  // namespace

std::mutex& device_mutex() {
    // There from the start: the thread sanitizer does not see who makes something in here first.
    static constinit std::mutex the_mutex;
    return the_mutex;
}

cudaError_t remember(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
    return error;
}

cudaError_t refusal() {
    static pid_t const owner = ::getpid();
    static cudaError_t const state = driver_state();
    // CUDA does not survive a fork: neither does this.
    if (owner != ::getpid()) return cudaErrorInitializationError;
    return state;
}

cudaError_t lost() {
    return lost_by;
}
void lose_device(cudaError_t error) {
    lost_by = error;
}

int device_count() {
    return static_cast<int>(devices().size());
}
Device const& device(int ordinal) {
    return devices()[static_cast<std::size_t>(ordinal)];
}

bool lazy_streams() {
    static bool const lazy = [] {
        std::string_view const wish = setting("CUDAEMU_STREAMS", "eager");
        if (wish != "eager" && wish != "lazy") bad_setting("CUDAEMU_STREAMS", "eager or lazy");
        return wish == "lazy";
    }();
    return lazy;
}

bool traps_host_access() {
    static bool const traps = [] {
        std::string_view const wish = setting("CUDAEMU_HOST_ACCESS", "allow");
        if (wish != "allow" && wish != "trap") bad_setting("CUDAEMU_HOST_ACCESS", "allow or trap");
        return wish == "trap";
    }();
    return traps;
}

}  // namespace cudaemu

using cudaemu::remember;

extern "C" {

cudaError_t cudaGetLastError() {
    cudaError_t const error = cudaemu::last_error;
    cudaemu::last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError() {
    return cudaemu::last_error;
}

// The count is left unwritten where there is none, as the runtime does.
cudaError_t cudaGetDeviceCount(int* count) {
    if (cudaError_t const refused = cudaemu::refusal(); refused != cudaSuccess)
        return remember(refused);
    *count = cudaemu::device_count();
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int ordinal) {
    if (cudaError_t const refused = cudaemu::refusal(); refused != cudaSuccess)
        return remember(refused);
    if (cudaError_t const bad = cudaemu::check_ordinal(ordinal); bad != cudaSuccess)
        return remember(bad);
    cudaemu::set_device(ordinal);
    return remember(cudaemu::lost());
}
cudaError_t cudaInitDevice(int ordinal, unsigned /*device_flags*/, unsigned /*flags*/) {
    if (cudaError_t const refused = cudaemu::refusal(); refused != cudaSuccess)
        return remember(refused);
    if (cudaError_t const bad = cudaemu::check_ordinal(ordinal); bad != cudaSuccess)
        return remember(bad);
    cudaemu::primary_context(ordinal);  // And not made current.
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* ordinal) {
    if (cudaError_t const refused = cudaemu::refusal(); refused != cudaSuccess)
        return remember(refused);
    *ordinal = cudaemu::current_device();
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int ordinal) {
    if (cudaError_t const refused = cudaemu::refusal(); refused != cudaSuccess)
        return remember(refused);
    if (cudaError_t const bad = cudaemu::check_ordinal(ordinal); bad != cudaSuccess)
        return remember(bad);
    *value = cudaemu::attribute(attribute);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int ordinal) {
    if (cudaError_t const refused = cudaemu::refusal(); refused != cudaSuccess)
        return remember(refused);
    if (cudaError_t const bad = cudaemu::check_ordinal(ordinal); bad != cudaSuccess)
        return remember(bad);
    cudaemu::Device const& device = cudaemu::device(ordinal);
    *properties = {};
    std::snprintf(properties->name, sizeof properties->name, "emulated device");
    properties->uuid = device.uuid;
    properties->totalGlobalMem = device.bytes;
    cudaemu::Architecture const& architecture = cudaemu::architecture();
    properties->major = architecture.number / 10;
    properties->minor = architecture.number % 10;
    properties->multiProcessorCount = 4;
    properties->warpSize = 32;
    properties->sharedMemPerBlock = std::size_t{48} << 10U;
    properties->sharedMemPerBlockOptin = architecture.shared_block_max;
    properties->sharedMemPerMultiprocessor = architecture.shared;
    properties->regsPerBlock = 65536;
    properties->regsPerMultiprocessor = 65536;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = architecture.threads;
    properties->maxBlocksPerMultiProcessor = architecture.blocks;
    properties->maxThreadsDim[0] = 1024;
    properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 0x7fffffff;
    properties->maxGridSize[1] = 65535;
    properties->maxGridSize[2] = 65535;
    properties->totalConstMem = std::size_t{64} << 10U;
    properties->l2CacheSize = 4 << 20;
    properties->unifiedAddressing = 1;
    properties->concurrentKernels = 1;
    properties->canMapHostMemory = 1;
    properties->memoryPoolsSupported = 1;
    properties->memoryPoolSupportedHandleTypes = cudaMemHandleTypePosixFileDescriptor;
    properties->ipcEventSupported = 1;
    properties->streamPrioritiesSupported = 1;
    properties->pciBusID = static_cast<int>(device.physical) + 1;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int bytes, int ordinal) {
    if (cudaError_t const bad = cudaemu::check_ordinal(ordinal); bad != cudaSuccess)
        return remember(bad);
    if (bytes < 13) return remember(cudaErrorInvalidValue);
    std::snprintf(id, static_cast<std::size_t>(bytes), "0000:%02X:00.0",
                  cudaemu::device(ordinal).physical + 1);
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int ordinal, int peer) {
    if (cudaError_t const bad = cudaemu::check_ordinal(ordinal); bad != cudaSuccess)
        return remember(bad);
    if (cudaError_t const bad = cudaemu::check_ordinal(peer); bad != cudaSuccess)
        return remember(bad);
    *can = ordinal != peer ? 1 : 0;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    // 0 without a driver, and success.
    bool const driver = cudaemu::refusal() != cudaErrorInsufficientDriver;
    *version = driver ? CUDART_VERSION : 0;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

}  // extern "C"
