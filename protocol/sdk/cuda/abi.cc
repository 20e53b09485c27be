// dkv_cuda.h's functions: thin, for the work is done elsewhere.
#include <algorithm>

#include "protocol/device/copy.h"
#include "protocol/device/device_guard.h"
#include "protocol/sdk/cuda/engine_device.h"
#include "protocol/sdk/cuda/guarded.h"
#include "protocol/sdk/cuda/memory.h"
#include "protocol/sdk/dkv_cuda.h"

using dkv::Error;
using dkv::ErrorCode;
using dkv::Result;
using dkv::cuda::Device;
using dkv::cuda::DeviceGuard;
using dkv::sdk_cuda::told;

namespace {

Error null_pointer(char const* name) {
    return {ErrorCode::InvalidArgument, std::string(name) + " is NULL"};
}

template <std::size_t n>
void copy_text(std::string const& text, char (&out)[n]) {
    std::size_t const length = std::min(text.size(), n - 1);
    std::memcpy(out, text.data(), length);
    out[length] = '\0';
}

Result<void> check(dkv_cuda_device const* device) {
    if (device == nullptr) return null_pointer("device");
    if (device->struct_bytes < sizeof *device)
        return Error{ErrorCode::InvalidArgument, "device->struct_bytes is " +
                                                     std::to_string(device->struct_bytes) +
                                                     ", not " + std::to_string(sizeof *device)};
    return {};
}

void put(Device const& found, dkv_cuda_device& device) {
    device.ordinal = found.ordinal;
    copy_text(found.uuid, device.uuid);
    copy_text(found.name, device.name);
    device.bytes = found.bytes;
    device.major = found.major;
    device.minor = found.minor;
    device.multiprocessors = found.multiprocessors;
}

}  // namespace

char const* dkv_cuda_built_with(void) {
    return dkv::cuda::built_with().data();  // A literal: it ends in 0.
}

int32_t dkv_cuda_is_emulated(void) {
    return dkv::cuda::built_with().find("emulated") == std::string_view::npos ? 0 : 1;
}

dkv_status dkv_cuda_device_count(uint32_t* count) {
    return told([&]() -> Result<void> {
        if (count == nullptr) return null_pointer("count");
        *count = 0;
        *count = static_cast<uint32_t>(DKV_TRY(dkv::cuda::devices()).size());
        return {};
    });
}

dkv_status dkv_cuda_get_device(uint32_t index, dkv_cuda_device* device) {
    return told([&]() -> Result<void> {
        DKV_TRY(check(device));
        auto const all = DKV_TRY(dkv::cuda::devices());
        if (index >= all.size())
            return Error{ErrorCode::InvalidArgument,
                         "device " + std::to_string(index) + " of " + std::to_string(all.size())};
        put(all[index], *device);
        return {};
    });
}

dkv_status dkv_cuda_get_device_of(void const* data, dkv_cuda_device* device) {
    return told([&]() -> Result<void> {
        DKV_TRY(check(device));
        int const ordinal = DKV_TRY(dkv::cuda::device_of(data, 1));
        put(DKV_TRY(dkv::cuda::devices()).at(static_cast<std::size_t>(ordinal)), *device);
        return {};
    });
}

dkv_status dkv_cuda_arena_create(char const* uuid,
                                 uint64_t bytes,
                                 dkv_cuda_arena_kind kind,
                                 dkv_arena** arena) {
    dkv_device_memory memory{};
    dkv_status const status = told([&]() -> Result<void> {
        if (uuid == nullptr) return null_pointer("uuid");
        if (arena == nullptr) return null_pointer("arena");
        *arena = nullptr;
        auto const device = DKV_TRY(dkv::cuda::find_device(uuid));
        memory = DKV_TRY(dkv::sdk_cuda::allocate(device, bytes, kind));
        return {};
    });
    return status == DKV_OK ? dkv_device_arena_create(&memory, arena) : status;
}

dkv_status dkv_cuda_arena_adopt(void* data, uint64_t bytes, dkv_arena** arena) {
    dkv_device_memory memory{};
    dkv_status const status = told([&]() -> Result<void> {
        if (arena == nullptr) return null_pointer("arena");
        *arena = nullptr;
        memory = DKV_TRY(dkv::sdk_cuda::adopt(data, bytes));
        return {};
    });
    return status == DKV_OK ? dkv_device_arena_create(&memory, arena) : status;
}

dkv_status dkv_cuda_engine_open(dkv_engine_options const* options, dkv_engine** engine) {
    dkv_device device{};
    dkv_status const status = told([&]() -> Result<void> {
        if (options == nullptr) return null_pointer("options");
        if (engine == nullptr) return null_pointer("engine");
        *engine = nullptr;
        if (options->struct_bytes < sizeof *options)
            return Error{ErrorCode::InvalidArgument,
                         "options->struct_bytes is " + std::to_string(options->struct_bytes) +
                             ", not " + std::to_string(sizeof *options)};
        if (options->device == nullptr)
            return Error{ErrorCode::InvalidArgument, "options->device is NULL, no GPU's UUID"};
        device =
            DKV_TRY(dkv::sdk_cuda::device_functions(options->device, options->geometry.layers));
        return {};
    });
    return status == DKV_OK ? dkv_device_engine_open(options, &device, engine) : status;
}

dkv_status dkv_cuda_layer_ready(dkv_session* session, dkv_layer_ready const* ready, void* stream) {
    return dkv_device_layer_ready(session, ready, stream);
}

dkv_status dkv_cuda_copy_to_host(void* target, void const* source, uint64_t bytes) {
    return told([&]() -> Result<void> {
        if (bytes == 0) return {};
        if (target == nullptr) return null_pointer("target");
        auto const guard =
            DKV_TRY(DeviceGuard::enter(DKV_TRY(dkv::cuda::device_of(source, bytes))));
        return dkv::cuda::copy_to_host(target, source, bytes);
    });
}

dkv_status dkv_cuda_copy_to_device(void* target, void const* source, uint64_t bytes, void* stream) {
    return told([&]() -> Result<void> {
        if (bytes == 0) return {};
        if (source == nullptr) return null_pointer("source");
        auto const guard =
            DKV_TRY(DeviceGuard::enter(DKV_TRY(dkv::cuda::device_of(target, bytes))));
        return dkv::cuda::copy_to_device(target, source, bytes, stream);
    });
}
