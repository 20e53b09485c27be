// An engine's process as far as device memory goes: makes some, says what names it, sends what
// only a socket can carry. Commands on standard input, one answer each; ends with its input.
#include <array>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <cuda_runtime.h>

#include "protocol/base/fd_message.h"
#include "protocol/device/device.h"
#include "protocol/device/events.h"
#include "protocol/device/memory.h"

namespace {

using namespace dkv;
using namespace dkv::cuda;

constexpr int kDescriptors = 3;  // The socket that the test made before it started this.

template <std::size_t size>
std::string hex(std::array<std::byte, size> const& bytes) {
    std::string text;
    for (auto const byte : bytes) {
        std::array<char, 3> two{};
        std::snprintf(two.data(), two.size(), "%02x", static_cast<unsigned>(byte));
        text += two.data();
    }
    return text;
}

void send(UniqueFd const& file) {
    constexpr std::array kNothing{std::byte{}};  // A message has a byte at least.
    std::array const fds{file.get()};
    if (send_fds(kDescriptors, kNothing, fds) != 1) std::exit(3);
}

/// "HANDLE ALLOCATION OFFSET BYTES", the handle "-" where a descriptor says it all.
std::string tell(Exported const& exported) {
    auto const numbers = [](auto const& memory) {
        return " " + std::to_string(memory.allocation_bytes) + " " + std::to_string(memory.offset) +
               " " + std::to_string(memory.bytes);
    };
    if (auto const* const ipc = std::get_if<IpcMemory>(&exported))
        return hex(ipc->handle) + numbers(*ipc);
    if (auto const* const vmm = std::get_if<VmmMemory>(&exported)) {
        send(vmm->file);
        return "-" + numbers(*vmm);
    }
    auto const& pool = std::get<PoolMemory>(exported);
    send(pool.pool);
    return hex(pool.pointer) + numbers(pool);
}

std::string exported_text(void* data, std::size_t bytes, int fill) {
    if (cudaMemset(data, fill, bytes) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess)
        return "cannot fill";
    auto const exported = export_memory(data, bytes);
    return exported ? tell(exported.value()) : exported.error().message;
}

void* from_pool(std::size_t bytes) {
    cudaMemPoolProps wish{};
    wish.allocType = cudaMemAllocationTypePinned;
    wish.handleTypes = cudaMemHandleTypePosixFileDescriptor;
    wish.location.type = cudaMemLocationTypeDevice;
    cudaMemPool_t pool = nullptr;
    void* data = nullptr;
    if (cudaMemPoolCreate(&pool, &wish) != cudaSuccess ||
        cudaMallocFromPoolAsync(&data, bytes, pool, nullptr) != cudaSuccess ||
        cudaStreamSynchronize(nullptr) != cudaSuccess)
        return nullptr;
    return data;
}

}  // namespace

int main() {
    auto const all = devices();
    if (!all || !use_device(all.value().front().uuid)) return 2;
    std::vector<std::unique_ptr<DeviceMemory>> kept;
    std::unique_ptr<EventPool> events;
    cudaStream_t stream = nullptr;
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return 2;
    std::string command;
    while (std::cin >> command) {
        std::size_t bytes = 0;
        int fill = 0;
        if (command == "ipc" || command == "vmm" || command == "pool" || command == "raw")
            std::cin >> bytes >> fill;
        if (command == "ipc" || command == "vmm") {
            kept.push_back(
                (command == "ipc" ? allocate_device_memory(bytes) : allocate_vmm_memory(bytes))
                    .value());
            std::cout << exported_text(kept.back()->bytes().data(), bytes, fill) << std::endl;
        } else if (command == "pool") {
            std::cout << exported_text(from_pool(bytes), bytes, fill) << std::endl;
        } else if (command == "raw") {
            void* data = nullptr;  // Of a size that shares its block with others.
            if (cudaMalloc(&data, bytes) != cudaSuccess) return 2;
            std::cout << exported_text(data, bytes, fill) << std::endl;
        } else if (command == "event") {
            events = make_event_pool(1).value();
            std::cout << hex(events->handles().front()) << std::endl;
        } else if (command == "record") {
            // Behind something that, on lazy streams, is not done before somebody waits for it.
            if (cudaMemsetAsync(kept.back()->bytes().data(), 9, 64, stream) != cudaSuccess)
                return 2;
            std::cout << (events->record(0, stream) ? "recorded" : "not recorded") << std::endl;
        } else {
            std::cout << "no such command" << std::endl;
        }
    }
}
