// Another process for the tests: obeys one command a line, answers one line each.
#include <array>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include "tests/tools/cuda_emu/hex.h"

namespace {

using dkv::test::from_hex;

template <class Function>
Function driver(char const* name) {
    void* found = nullptr;
    if (cudaGetDriverEntryPointByVersion(name, &found, 13000, 0, nullptr) != cudaSuccess)
        std::abort();
    return reinterpret_cast<Function>(found);
}

std::string name(cudaError_t error) {
    return cudaGetErrorName(error);
}

int g_word(void* address, std::size_t offset) {
    int value = 0;
    cudaMemcpy(&value, static_cast<std::byte*>(address) + offset, sizeof value,
               cudaMemcpyDeviceToHost);
    return value;
}

class Peer {
public:
    std::string obey(std::istringstream command) {
        std::string verb;
        command >> verb;
        if (verb == "devices") return devices();
        if (verb == "open_memory") return open_memory(command);
        if (verb == "close_memory") return name(cudaIpcCloseMemHandle(memory_));
        if (verb == "read") return std::to_string(g_word(memory_, number(command)));
        if (verb == "write") return write(command);
        if (verb == "open_event") return open_event(command);
        if (verb == "query") return name(cudaEventQuery(event_));
        if (verb == "synchronize") return name(cudaEventSynchronize(event_));
        if (verb == "record") return name(cudaEventRecord(event_, nullptr));
        if (verb == "fill_behind_event") return fill_behind_event(command);
        if (verb == "order") return order(command);
        if (verb == "plain_fill") return plain_fill();
        if (verb == "import_pool") return import_pool(command);
        if (verb == "import_vmm") return import_vmm(command);
        return "what is " + verb + "?";
    }

private:
    static std::size_t number(std::istringstream& command) {
        std::size_t value = 0;
        command >> value;
        return value;
    }
    template <class Handle>
    static Handle handle(std::istringstream& command) {
        std::string text;
        command >> text;
        return from_hex<Handle>(text);
    }

    static std::string devices() {
        int count = -1;
        std::string answer = name(cudaGetDeviceCount(&count));
        answer += " " + std::to_string(count);
        for (int ordinal = 0; ordinal < count; ++ordinal) {
            cudaDeviceProp properties{};
            cudaGetDeviceProperties(&properties, ordinal);
            answer += " " + std::to_string(static_cast<unsigned char>(properties.uuid.bytes[0]));
        }
        return answer;
    }
    std::string open_memory(std::istringstream& command) {
        void* opened = nullptr;
        auto const error = cudaIpcOpenMemHandle(&opened, handle<cudaIpcMemHandle_t>(command),
                                                cudaIpcMemLazyEnablePeerAccess);
        if (error != cudaSuccess) return name(error);
        bool const again = opened == memory_;
        memory_ = opened;
        return again ? "again" : "opened";
    }
    std::string write(std::istringstream& command) {
        std::size_t const offset = number(command);
        int const value = static_cast<int>(number(command));
        auto const error = cudaMemcpy(static_cast<std::byte*>(memory_) + offset, &value,
                                      sizeof value, cudaMemcpyHostToDevice);
        return name(error == cudaSuccess ? cudaDeviceSynchronize() : error);
    }
    std::string open_event(std::istringstream& command) {
        return name(cudaIpcOpenEventHandle(&event_, handle<cudaIpcEventHandle_t>(command)));
    }
    /// Queued behind the event; not waited for.
    std::string fill_behind_event(std::istringstream& command) {
        cudaStream_t stream = nullptr;
        cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
        cudaStreamWaitEvent(stream, event_, 0);
        return name(
            cudaMemsetAsync(memory_, static_cast<int>(number(command)), sizeof(int), stream));
    }
    /// "default" or "stream" is first given something to do, then the other; then the second of
    /// them is waited for, then the first. What was done by the first wait, and by the second: "a"
    /// is what was queued first.
    static std::string order(std::istringstream& command) {
        std::string kind;
        std::string first;
        command >> kind >> first;
        cudaStream_t stream = nullptr;
        cudaStreamCreateWithFlags(&stream,
                                  kind == "blocking" ? cudaStreamDefault : cudaStreamNonBlocking);
        std::string done;
        auto const say = [&](cudaStream_t on, char const* what) {
            struct Word {
                std::string* text;
                char const* what;
            };
            cudaLaunchHostFunc(
                on,
                [](void* given) {
                    std::unique_ptr<Word> const word(static_cast<Word*>(given));
                    *word->text += word->what;
                },
                new Word{&done, what});
        };
        cudaStream_t const one = first == "default" ? nullptr : stream;
        cudaStream_t const other = first == "default" ? stream : nullptr;
        say(one, "a");
        say(other, "b");
        done += "|";
        cudaStreamSynchronize(other);
        done += "|";
        cudaStreamSynchronize(one);
        cudaStreamDestroy(stream);
        return done;
    }
    /// What a plain cudaMemset and a plain cudaMemcpy have written when they return, as somebody
    /// sees it who waits for neither; then when the device was waited for.
    static std::string plain_fill() {
        int* memory = nullptr;
        int const seven = 7;
        cudaMalloc(reinterpret_cast<void**>(&memory), 2 * sizeof(int));
        cudaMemset(memory, 1, sizeof(int));
        cudaMemcpy(memory + 1, &seven, sizeof seven, cudaMemcpyHostToDevice);
        cudaStream_t aside = nullptr;
        cudaStreamCreateWithFlags(&aside, cudaStreamNonBlocking);
        auto const seen = [&] {
            std::array<int, 2> both{};
            cudaMemcpyAsync(both.data(), memory, sizeof both, cudaMemcpyDeviceToHost, aside);
            return std::to_string(both[0]) + " " + std::to_string(both[1]);
        };
        std::string const before = seen();
        cudaDeviceSynchronize();
        return before + ", then " + seen();
    }
    std::string import_pool(std::istringstream& command) {
        auto const descriptor = static_cast<std::intptr_t>(number(command));
        cudaMemPool_t pool = nullptr;
        auto error = cudaMemPoolImportFromShareableHandle(
            &pool, reinterpret_cast<void*>(descriptor), cudaMemHandleTypePosixFileDescriptor, 0);
        if (error != cudaSuccess) return name(error);
        auto data = handle<cudaMemPoolPtrExportData>(command);
        return name(cudaMemPoolImportPointer(&memory_, pool, &data));
    }
    std::string import_vmm(std::istringstream& command) {
        auto const descriptor = static_cast<std::intptr_t>(number(command));
        std::size_t const bytes = number(command);
        CUmemGenericAllocationHandle imported = 0;
        CUdeviceptr address = 0;
        CUmemAccessDesc access{};
        access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
        access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        int const failed =
            driver<PFN_cuMemImportFromShareableHandle_v10020>("cuMemImportFromShareableHandle")(
                &imported, reinterpret_cast<void*>(descriptor),
                CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) +
            driver<PFN_cuMemAddressReserve_v10020>("cuMemAddressReserve")(&address, bytes, 0, 0,
                                                                          0) +
            driver<PFN_cuMemMap_v10020>("cuMemMap")(address, bytes, 0, imported, 0) +
            driver<PFN_cuMemSetAccess_v10020>("cuMemSetAccess")(address, bytes, &access, 1);
        memory_ = reinterpret_cast<void*>(address);
        return std::to_string(failed);
    }

    void* memory_ = nullptr;
    cudaEvent_t event_ = nullptr;
};

}  // namespace

int main() {
    Peer peer;
    std::string line;
    while (std::getline(std::cin, line))
        std::cout << peer.obey(std::istringstream(line)) << std::endl;
    return 0;
}
