// Two real processes and what they share.
#include <cstdint>
#include <fcntl.h>

#include <cuda.h>
#include <cudaTypedefs.h>

#include "tests/tools/cuda_emu/hex.h"
#include "tests/tools/cuda_emu/launch.h"
#include "tests/tools/cuda_emu/peer.h"

namespace dkv::test {
namespace {

template <class Function>
Function driver(char const* name) {
    void* found = nullptr;
    REQUIRE(cudaGetDriverEntryPointByVersion(name, &found, 13000, 0, nullptr) == cudaSuccess);
    return reinterpret_cast<Function>(found);
}

template <class T>
std::string handle_of(OnDevice<T> const& memory) {
    cudaIpcMemHandle_t handle{};
    REQUIRE(cudaIpcGetMemHandle(&handle, memory.data()) == cudaSuccess);
    return to_hex(handle);
}

TEST_CASE("what one process writes into cudaMalloc'ed memory another one reads, both ways") {
    OnDevice<int> const memory(std::vector<int>{7, 8, 9});
    Peer peer;

    CHECK(peer.ask("open_memory " + handle_of(memory)) == "opened");
    CHECK(peer.ask("read 8") == "9");
    CHECK(peer.ask("write 4 80") == "cudaSuccess");

    CHECK(memory.fetch() == std::vector<int>{7, 80, 9});
}

TEST_CASE("a handle that is opened twice is one mapping, and closed twice") {
    OnDevice<int> const memory(std::vector<int>{7});
    Peer peer;

    CHECK(peer.ask("open_memory " + handle_of(memory)) == "opened");
    CHECK(peer.ask("open_memory " + handle_of(memory)) == "again");
    CHECK(peer.ask("close_memory") == "cudaSuccess");
    CHECK(peer.ask("read 0") == "7");
    CHECK(peer.ask("close_memory") == "cudaSuccess");
    CHECK(peer.ask("close_memory") == "cudaErrorInvalidValue");
}

TEST_CASE("a process cannot open its own handle") {
    OnDevice<int> const memory(1);
    void* opened = nullptr;

    CHECK(cudaIpcOpenMemHandle(&opened, from_hex<cudaIpcMemHandle_t>(handle_of(memory)),
                               cudaIpcMemLazyEnablePeerAccess) == cudaErrorDeviceUninitialized);
    CHECK(cudaErrorDeviceUninitialized == 201);
}

TEST_CASE("host, pool and VMM memory have no legacy handle") {
    cudaIpcMemHandle_t handle{};
    int on_stack = 0;
    void* from_pool = nullptr;
    void* on_host = nullptr;
    REQUIRE(cudaMallocAsync(&from_pool, 64, nullptr) == cudaSuccess);
    REQUIRE(cudaMallocHost(&on_host, 64) == cudaSuccess);

    CHECK(cudaIpcGetMemHandle(&handle, &on_stack) == cudaErrorInvalidValue);
    CHECK(cudaIpcGetMemHandle(&handle, from_pool) == cudaErrorInvalidValue);
    CHECK(cudaIpcGetMemHandle(&handle, on_host) == cudaErrorInvalidValue);
    unsigned capable = 1;
    auto const attribute = driver<PFN_cuPointerGetAttribute_v4000>("cuPointerGetAttribute");
    CHECK(attribute(&capable, CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE,
                    reinterpret_cast<CUdeviceptr>(from_pool)) == CUDA_SUCCESS);
    CHECK(capable == 0);

    CHECK(cudaFreeAsync(from_pool, nullptr) == cudaSuccess);
    CHECK(cudaFreeHost(on_host) == cudaSuccess);
}

TEST_CASE("memory that its exporter's death left behind stays with who mapped it") {
    OnDevice<int> const mine(1);
    Peer peer;
    CHECK(peer.ask("open_memory " + handle_of(mine)) == "opened");
    peer.kill();
    CHECK(peer.ask("read 0") == "nothing: it died");
    CHECK(mine.fetch().size() == 1);
}

std::string handle_of(cudaEvent_t event) {
    cudaIpcEventHandle_t handle{};
    REQUIRE(cudaIpcGetEventHandle(&handle, event) == cudaSuccess);
    return to_hex(handle);
}

class SharedEvent {
public:
    SharedEvent() {
        REQUIRE(cudaEventCreateWithFlags(&event_, cudaEventInterprocess | cudaEventDisableTiming) ==
                cudaSuccess);
    }
    ~SharedEvent() { static_cast<void>(cudaEventDestroy(event_)); }
    SharedEvent(SharedEvent const&) = delete;
    SharedEvent& operator=(SharedEvent const&) = delete;
    cudaEvent_t get() const { return event_; }

private:
    cudaEvent_t event_ = nullptr;
};

TEST_CASE("an event that was recorded behind work here has happened there when the work is done") {
    OnDevice<int> const memory(std::vector<int>{0});
    SharedEvent const event;
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    Peer peer;
    REQUIRE(peer.ask("open_memory " + handle_of(memory)) == "opened");
    REQUIRE(peer.ask("open_event " + handle_of(event.get())) == "cudaSuccess");
    CHECK(peer.ask("query") == "cudaSuccess");  // Never recorded: nothing to wait for.

    // Nobody synchronizes here: lazy streams run because the peer waits.
    REQUIRE(cudaMemsetAsync(memory.data(), 1, sizeof(int), stream) == cudaSuccess);
    REQUIRE(cudaEventRecord(event.get(), stream) == cudaSuccess);
    CHECK(peer.ask("synchronize") == "cudaSuccess");
    CHECK(peer.ask("read 0") == "16843009");

    REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("an event is not ready for another process while a host function holds its stream") {
    SharedEvent const event;
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    OnDevice<std::uint64_t> const gate(std::vector<std::uint64_t>{0});
    auto const wait = driver<PFN_cuStreamWaitValue64_v11070>("cuStreamWaitValue64");
    Peer peer;
    REQUIRE(peer.ask("open_event " + handle_of(event.get())) == "cudaSuccess");

    auto const word = reinterpret_cast<CUdeviceptr>(gate.data());
    REQUIRE(wait(stream, word, 5, CU_STREAM_WAIT_VALUE_GEQ) == CUDA_SUCCESS);
    REQUIRE(cudaEventRecord(event.get(), stream) == cudaSuccess);
    CHECK(peer.ask("query") == "cudaErrorNotReady");
    peer.tell("synchronize");
    std::uint64_t const five = 5;
    REQUIRE(cudaMemcpyAsync(gate.data(), &five, sizeof five, cudaMemcpyHostToDevice, nullptr) ==
            cudaSuccess);
    REQUIRE(cudaStreamSynchronize(nullptr) == cudaSuccess);
    CHECK(peer.answer() == "cudaSuccess");

    REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("work behind another process's event runs when that has happened, waited for or not") {
    OnDevice<int> const memory(std::vector<int>{0});
    SharedEvent const event;
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    OnDevice<std::uint64_t> const gate(std::vector<std::uint64_t>{0});
    auto const wait = driver<PFN_cuStreamWaitValue64_v11070>("cuStreamWaitValue64");
    auto const write = driver<PFN_cuStreamWriteValue64_v11070>("cuStreamWriteValue64");
    auto const word = reinterpret_cast<CUdeviceptr>(gate.data());
    Peer peer(Environment{{"CUDAEMU_STREAMS", "eager"}});
    REQUIRE(peer.ask("open_memory " + handle_of(memory)) == "opened");
    REQUIRE(peer.ask("open_event " + handle_of(event.get())) == "cudaSuccess");

    REQUIRE(wait(stream, word, 1, CU_STREAM_WAIT_VALUE_EQ) == CUDA_SUCCESS);
    REQUIRE(cudaEventRecord(event.get(), stream) == cudaSuccess);
    REQUIRE(peer.ask("fill_behind_event 2") == "cudaSuccess");
    CHECK(memory.fetch()[0] == 0);
    REQUIRE(write(nullptr, word, 1, 0) == CUDA_SUCCESS);
    while (memory.fetch()[0] == 0) {  // ctest's timeout is the deadline.
    }
    CHECK(memory.fetch()[0] == 0x02020202);

    REQUIRE(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST_CASE("an interprocess event has no timing, and other events no handle") {
    cudaEvent_t event = nullptr;
    cudaIpcEventHandle_t handle{};

    CHECK(cudaEventCreateWithFlags(&event, cudaEventInterprocess) == cudaErrorInvalidValue);
    REQUIRE(cudaEventCreateWithFlags(&event, cudaEventDisableTiming) == cudaSuccess);
    CHECK(cudaIpcGetEventHandle(&handle, event) == cudaErrorInvalidResourceHandle);
    CHECK(cudaEventDestroy(event) == cudaSuccess);
    CHECK(cudaEventDestroy(event) == cudaErrorInvalidResourceHandle);
}

TEST_CASE(
    "memory of an exportable pool crosses by the pool's descriptor and the pointer's export") {
    cudaMemPoolProps wish{};
    wish.allocType = cudaMemAllocationTypePinned;
    wish.handleTypes = cudaMemHandleTypePosixFileDescriptor;
    wish.location.type = cudaMemLocationTypeDevice;
    cudaMemPool_t pool = nullptr;
    REQUIRE(cudaMemPoolCreate(&pool, &wish) == cudaSuccess);
    void* before = nullptr;
    void* memory = nullptr;
    REQUIRE(cudaMallocFromPoolAsync(&before, 5000, pool, nullptr) == cudaSuccess);
    REQUIRE(cudaMallocFromPoolAsync(&memory, 5000, pool, nullptr) == cudaSuccess);
    REQUIRE(cudaMemset(memory, 3, 5000) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    int descriptor = -1;
    cudaMemPoolPtrExportData data{};
    REQUIRE(cudaMemPoolExportToShareableHandle(
                &descriptor, pool, cudaMemHandleTypePosixFileDescriptor, 0) == cudaSuccess);
    REQUIRE(cudaMemPoolExportPointer(&data, memory) == cudaSuccess);
    REQUIRE(::fcntl(descriptor, F_SETFD, 0) == 0);  // The peer inherits it.

    Peer peer;
    CHECK(peer.ask("import_pool " + std::to_string(descriptor) + " " + to_hex(data)) ==
          "cudaSuccess");
    CHECK(peer.ask("read 4996") == "50529027");

    ::close(descriptor);
    CHECK(cudaFreeAsync(memory, nullptr) == cudaSuccess);
    CHECK(cudaFreeAsync(memory, nullptr) == cudaErrorInvalidValue);
    CHECK(cudaFree(before) == cudaSuccess);
    CHECK(cudaMemPoolDestroy(pool) == cudaSuccess);
}

TEST_CASE("the default pool is not exportable") {
    cudaMemPool_t pool = nullptr;
    REQUIRE(cudaDeviceGetDefaultMemPool(&pool, 0) == cudaSuccess);
    int descriptor = -1;
    CHECK(cudaMemPoolExportToShareableHandle(
              &descriptor, pool, cudaMemHandleTypePosixFileDescriptor, 0) == cudaErrorInvalidValue);
}

struct Mapped {
    CUdeviceptr address = 0;
    std::size_t bytes = 0;
    CUmemGenericAllocationHandle handle = 0;
};

Mapped map_vmm(CUmemAllocationHandleType type) {
    CUmemAllocationProp wish{};
    wish.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wish.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    wish.requestedHandleTypes = type;
    Mapped made;
    REQUIRE(driver<PFN_cuMemGetAllocationGranularity_v10020>("cuMemGetAllocationGranularity")(
                &made.bytes, &wish, CU_MEM_ALLOC_GRANULARITY_MINIMUM) == CUDA_SUCCESS);
    REQUIRE(driver<PFN_cuMemCreate_v10020>("cuMemCreate")(&made.handle, made.bytes, &wish, 0) ==
            CUDA_SUCCESS);
    REQUIRE(driver<PFN_cuMemAddressReserve_v10020>("cuMemAddressReserve")(&made.address, made.bytes,
                                                                          0, 0, 0) == CUDA_SUCCESS);
    REQUIRE(driver<PFN_cuMemMap_v10020>("cuMemMap")(made.address, made.bytes, 0, made.handle, 0) ==
            CUDA_SUCCESS);
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    REQUIRE(driver<PFN_cuMemSetAccess_v10020>("cuMemSetAccess")(made.address, made.bytes, &access,
                                                                1) == CUDA_SUCCESS);
    return made;
}

void unmap_vmm(Mapped const& made) {
    CHECK(driver<PFN_cuMemUnmap_v10020>("cuMemUnmap")(made.address, made.bytes) == CUDA_SUCCESS);
    CHECK(driver<PFN_cuMemAddressFree_v10020>("cuMemAddressFree")(made.address, made.bytes) ==
          CUDA_SUCCESS);
    CHECK(driver<PFN_cuMemRelease_v10020>("cuMemRelease")(made.handle) == CUDA_SUCCESS);
}

TEST_CASE("VMM memory that was made with a POSIX handle type crosses by its descriptor") {
    Mapped const made = map_vmm(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    auto* const memory = reinterpret_cast<std::byte*>(made.address);
    REQUIRE(cudaMemset(memory + 100, 4, 4) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    int descriptor = -1;
    auto const give =
        driver<PFN_cuMemExportToShareableHandle_v10020>("cuMemExportToShareableHandle");
    REQUIRE(give(&descriptor, made.handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0) ==
            CUDA_SUCCESS);
    REQUIRE(::fcntl(descriptor, F_SETFD, 0) == 0);

    Peer peer;
    CHECK(peer.ask("import_vmm " + std::to_string(descriptor) + " " + std::to_string(made.bytes)) ==
          "0");
    CHECK(peer.ask("read 100") == "67372036");

    ::close(descriptor);
    unmap_vmm(made);
}

TEST_CASE("VMM memory without a handle type is refused an export, and its pointer says so") {
    Mapped const made = map_vmm(CU_MEM_HANDLE_TYPE_NONE);
    auto const give =
        driver<PFN_cuMemExportToShareableHandle_v10020>("cuMemExportToShareableHandle");
    auto const attribute = driver<PFN_cuPointerGetAttribute_v4000>("cuPointerGetAttribute");
    int descriptor = -1;
    std::uint64_t types = 99;
    cudaIpcMemHandle_t handle{};

    CHECK(give(&descriptor, made.handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0) ==
          CUDA_ERROR_INVALID_VALUE);
    CHECK(attribute(&types, CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES, made.address) ==
          CUDA_SUCCESS);
    CHECK(types == 0);
    CHECK(cudaIpcGetMemHandle(&handle, reinterpret_cast<void*>(made.address)) ==
          cudaErrorInvalidValue);

    unmap_vmm(made);
}

}  // namespace
}  // namespace dkv::test
