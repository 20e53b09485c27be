#include "protocol/sdk/cuda/memory.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "protocol/device/copy.h"
#include "protocol/device/device_guard.h"
#include "protocol/device/memory.h"
#include "protocol/sdk/cuda/guarded.h"

namespace dkv::sdk_cuda {
namespace {

/// What `self` points to.
struct Memory {
    cuda::Device device;
    std::byte* base = nullptr;
    std::uint64_t bytes = 0;
    std::unique_ptr<cuda::DeviceMemory> owned;  // Null: the host's.
};

Memory& of(void* self) {
    return *static_cast<Memory*>(self);
}

void put(cuda::Exported exported, dkv_device_source& source) {
    auto const range = [&](auto const& memory) {
        source.allocation_bytes = memory.allocation_bytes;
        source.offset = memory.offset;
    };
    auto const handle = [&](auto const& bytes) {
        static_assert(sizeof bytes == sizeof source.handle);
        std::memcpy(source.handle, bytes.data(), sizeof source.handle);
    };
    source.fd = -1;
    if (auto* const ipc = std::get_if<cuda::IpcMemory>(&exported)) {
        source.kind = DKV_DEVICE_IPC;
        handle(ipc->handle);
        range(*ipc);
    } else if (auto* const vmm = std::get_if<cuda::VmmMemory>(&exported)) {
        source.kind = DKV_DEVICE_VMM_FD;
        source.fd = vmm->file.release();
        range(*vmm);
    } else {
        auto& pool = std::get<cuda::PoolMemory>(exported);
        source.kind = DKV_DEVICE_POOL;
        source.fd = pool.pool.release();
        handle(pool.pointer);
        range(pool);
    }
}

dkv_status describe(void* self, dkv_device_source* source, char* error) {
    return answered(error, [&]() -> Result<void> {
        put(DKV_TRY(cuda::export_memory(of(self).base, of(self).bytes)), *source);
        return {};
    });
}

dkv_status read(void* self, std::uint64_t offset, void* target, std::uint64_t bytes, char* error) {
    return answered(error, [&]() -> Result<void> {
        auto const guard = DKV_TRY(cuda::DeviceGuard::enter(of(self).device.ordinal));
        return cuda::copy_to_host(target, of(self).base + offset, bytes);
    });
}

void free_memory(void* self) {
    std::unique_ptr<Memory> const memory(&of(self));
    auto const guard = cuda::DeviceGuard::enter(memory->device.ordinal);
    memory->owned.reset();
}

dkv_device_memory functions_of(std::unique_ptr<Memory> memory) {
    dkv_device_memory functions{};
    functions.base = memory->base;
    functions.bytes = memory->bytes;
    functions.device = memory->device.uuid.c_str();
    functions.held_bytes = memory->owned ? memory->bytes : 0;
    functions.describe = describe;
    functions.read = read;
    functions.free = free_memory;
    functions.self = memory.release();
    return functions;
}

Result<bool> wants_vmm(dkv_cuda_arena_kind kind) {
    switch (kind) {
        case DKV_CUDA_ARENA_MALLOC: return false;
        case DKV_CUDA_ARENA_VMM: return true;
        case DKV_CUDA_ARENA_DEFAULT: break;
        default:
            return Error{
                ErrorCode::InvalidArgument,
                "arena kind is " + std::to_string(static_cast<int>(kind)) + ", not in 0 … 2"};
    }
    char const* const set = std::getenv("DKV_CUDA_ARENA");
    std::string_view const wish = set == nullptr ? "" : set;
    if (wish.empty() || wish == "malloc") return false;
    if (wish == "vmm") return true;
    return Error{ErrorCode::InvalidArgument,
                 "DKV_CUDA_ARENA is '" + std::string(wish) + "', neither malloc nor vmm"};
}

}  // namespace

Result<dkv_device_memory> allocate(cuda::Device const& device,
                                   std::uint64_t bytes,
                                   dkv_cuda_arena_kind kind) {
    bool const vmm = DKV_TRY(wants_vmm(kind));
    auto const guard = DKV_TRY(cuda::DeviceGuard::enter(device.ordinal));
    auto memory = std::make_unique<Memory>();
    memory->device = device;
    memory->owned =
        DKV_TRY(vmm ? cuda::allocate_vmm_memory(bytes) : cuda::allocate_device_memory(bytes));
    memory->base = memory->owned->bytes().data();
    memory->bytes = bytes;
    return functions_of(std::move(memory));
}

Result<dkv_device_memory> adopt(void* data, std::uint64_t bytes) {
    int const ordinal = DKV_TRY(cuda::device_of(data, bytes));
    DKV_TRY(cuda::export_memory(data, bytes));
    auto const devices = DKV_TRY(cuda::devices());
    auto memory = std::make_unique<Memory>();
    memory->device = devices.at(static_cast<std::size_t>(ordinal));
    memory->base = static_cast<std::byte*>(data);
    memory->bytes = bytes;
    return functions_of(std::move(memory));
}

}  // namespace dkv::sdk_cuda
