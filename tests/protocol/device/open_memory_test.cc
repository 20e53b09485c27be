// Another process's device memory, opened here: on the emulation, whose "device" memory two
// processes really share. The pitfalls of sharing, each by name.
#include <atomic>
#include <cstdlib>
#include <limits>
#include <thread>

#include <cudaemu/fault.h>

#include "protocol/device/device.h"
#include "protocol/device/driver.h"
#include "tests/protocol/device/exporter.h"
#include "tests/support/results.h"

namespace dkv::cuda {
namespace {

using test::Exporter;

constexpr std::size_t kBytes = 4096;
constexpr std::chrono::milliseconds kPatience{20'000};
constexpr std::chrono::milliseconds kBrief{30};

// Before anything looks at the devices.
[[maybe_unused]] bool const kHasTwoDevices = ::setenv("CUDAEMU_DEVICES", "2", 1) == 0;

void use_nth_device(std::size_t nth) {
    auto const all = devices();
    REQUIRE(all);
    REQUIRE(use_device(all.value().at(nth).uuid));
}

void use_first_device() {
    use_nth_device(0);
}

/// As an op would see it: through a copy.
int first_byte(OpenedMemory const& memory) {
    unsigned char byte = 0;
    REQUIRE(cudaMemcpy(&byte, memory.bytes().data(), 1, cudaMemcpyDeviceToHost) == cudaSuccess);
    return byte;
}

/// The same memory, sent once more.
VmmMemory again(VmmMemory const& memory) {
    return {static_cast<MemoryRange const&>(memory), UniqueFd(::dup(memory.file.get()))};
}

template <class T>
Error refused(Result<T> const& result) {
    REQUIRE(!result);
    return result.error();
}

TEST_CASE("memory of all three kinds is opened, and is the other process's") {
    use_first_device();
    Exporter engine;
    auto const ipc = open_memory(engine.ipc(kBytes, 11), 1, 1);
    REQUIRE(ipc);
    CHECK(first_byte(*ipc.value()) == 11);
    CHECK(ipc.value()->bytes().size() == kBytes);
    auto const vmm = open_memory(engine.vmm(kBytes, 12), 1, 1);
    REQUIRE(vmm);
    CHECK(first_byte(*vmm.value()) == 12);
    auto const pool = open_memory(engine.pool(kBytes, 13), 1, 1);
    REQUIRE(pool);
    CHECK(first_byte(*pool.value()) == 13);
    CHECK(opened_memory_count() == 3);
}

/// Of this thread.
CUcontext current_context() {
    CUcontext context = nullptr;
    auto const get = driver_function<PFN_cuCtxGetCurrent_v4000>("cuCtxGetCurrent", 4000);
    REQUIRE(get);
    REQUIRE(get.value()(&context) == CUDA_SUCCESS);
    return context;
}

TEST_CASE("a thread without a context closes what others opened, and has none afterwards") {
    use_first_device();
    Exporter engine;
    auto ipc = open_memory(engine.ipc(kBytes, 11), 1, 1);
    auto vmm = open_memory(engine.vmm(kBytes, 12), 1, 1);
    auto pool = open_memory(engine.pool(kBytes, 13), 1, 1);
    for (auto* const opened : {&ipc, &vmm, &pool}) {
        REQUIRE(*opened);
        std::thread([&] {
            CHECK(current_context() == nullptr);
            opened->value().reset();
            CHECK(current_context() == nullptr);
        }).join();
    }
    CHECK(opened_memory_count() == 0);
}

TEST_CASE("a range outside its allocation is refused, also where its end does not fit in 64 bits") {
    use_first_device();
    Exporter engine;
    auto const good = engine.ipc(kBytes, 1);
    auto const with = [&](std::uint64_t offset, std::uint64_t bytes, std::uint64_t allocation) {
        auto memory = good;
        memory.offset = offset;
        memory.bytes = bytes;
        memory.allocation_bytes = allocation;
        return refused(open_memory(memory, 1, 1));
    };
    auto const size = good.allocation_bytes;
    auto const most = std::numeric_limits<std::uint64_t>::max();
    CHECK(with(size, 1, size).message == "1 bytes at byte " + std::to_string(size) +
                                             " do not lie in an allocation of " +
                                             std::to_string(size) + " bytes");
    CHECK(with(8, most - 7, size).code == ErrorCode::InvalidArgument);
    CHECK(with(most, 8, size).code == ErrorCode::InvalidArgument);
    CHECK(with(0, 0, size).code == ErrorCode::InvalidArgument);
    CHECK(with(0, size + 1, most).message.find("the handle's allocation has ") !=
          std::string::npos);
    CHECK(opened_memory_count() == 0);
}

TEST_CASE(
    "a small allocation's handle opens a block that it shares: its claim is held to the rest") {
    use_first_device();
    constexpr std::size_t kOdd = 4096 + 256;
    Exporter engine;
    auto memory = engine.ipc(kOdd, 17, "raw");
    CHECK(memory.allocation_bytes == kOdd);
    CHECK(first_byte(*open_memory(memory, 1, 1).value()) == 17);
    memory.allocation_bytes = kOdd + 1;
    memory.bytes = kOdd + 1;
    CHECK(refused(open_memory(memory, 1, 1)).message ==
          "the handle's allocation has 4352 bytes, not 4353");
    CHECK(opened_memory_count() == 0);
}

TEST_CASE("an engine that counts its devices in another order lends memory all the same") {
    Exporter engine(nullptr, "1,0");
    auto const ipc = engine.ipc(kBytes, 51);
    auto const vmm = engine.vmm(kBytes, 52);
    Exported const pool = engine.pool(kBytes, 53);
    auto const refusal =
        "the memory is on device 1 as this process counts them, and the engine "
        "said device 0";

    use_first_device();
    CHECK(refused(open_memory(ipc, 1, 1)).message == refusal);
    CHECK(refused(open_memory(Exported(again(vmm)), 1, 1)).message == refusal);
    CHECK(opened_memory_count() == 0);

    use_nth_device(1);
    CHECK(first_byte(*open_memory(ipc, 1, 1).value()) == 51);
    CHECK(first_byte(*open_memory(Exported(again(vmm)), 1, 1).value()) == 52);
    CHECK(first_byte(*open_memory(pool, 1, 1).value()) == 53);
    use_first_device();
}

TEST_CASE("a handle opened twice is one mapping, and closed once") {
    use_first_device();
    Exporter engine;
    auto memory = engine.ipc(kBytes, 21);
    auto first = open_memory(memory, 1, 1).value();
    memory.offset = 1024;
    memory.bytes = 64;
    auto second = open_memory(memory, 1, 1).value();
    CHECK(opened_memory_count() == 1);
    CHECK(second->bytes().data() == first->bytes().data() + 1024);
    first.reset();
    CHECK(opened_memory_count() == 1);
    CHECK(first_byte(*second) == 21);
    second.reset();
    CHECK(opened_memory_count() == 0);
}

TEST_CASE("a descriptor sent twice is one mapping, another descriptor another") {
    use_first_device();
    Exporter engine;
    auto const one = engine.vmm(kBytes, 1);
    auto repeated = again(one);
    repeated.bytes = 64;
    auto const other = engine.vmm(kBytes, 2);
    auto const a = open_memory(Exported(engine.vmm(kBytes, 3)), 1, 1).value();
    auto const b = open_memory(Exported(std::move(repeated)), 1, 1).value();
    CHECK(opened_memory_count() == 2);
    CHECK(first_byte(*a) == 3);
    CHECK(first_byte(*b) == 1);
}

TEST_CASE("the same handle of a later generation, or of another engine, is another mapping") {
    use_first_device();
    Exporter engine;
    auto const memory = engine.ipc(kBytes, 1);
    auto const now = open_memory(memory, 1, 1).value();
    auto const later = open_memory(memory, 1, 2).value();
    auto const other = open_memory(memory, 2, 1).value();
    CHECK(opened_memory_count() == 3);
}

TEST_CASE("a dead engine's memory can be read until it is closed, and is then gone") {
    use_first_device();
    Exporter engine;
    auto memory = open_memory(engine.ipc(kBytes, 31), 1, 1).value();
    engine.kill();
    CHECK(first_byte(*memory) == 31);
    memory.reset();
    CHECK(opened_memory_count() == 0);
}

TEST_CASE("a handle of this process's own memory is refused by CUDA's code 201") {
    use_first_device();
    auto const own = allocate_device_memory(kBytes).value();
    auto const exported = export_memory(own->bytes().data(), kBytes);
    REQUIRE(exported);
    auto const error = refused(open_memory(exported.value(), 1, 1));
    CHECK(error.code == ErrorCode::BadState);
    CHECK(error.message.find("code 201") != std::string::npos);
    CHECK(opened_memory_count() == 0);
}

TEST_CASE("memory is opened by one thread and closed by another, which has no context") {
    Exporter engine;
    auto const exported = engine.ipc(kBytes, 41);
    std::shared_ptr<OpenedMemory const> memory;
    std::thread([&] {
        use_first_device();
        memory = open_memory(exported, 1, 1).value();
    }).join();
    std::thread([&] { memory.reset(); }).join();
    CHECK(opened_memory_count() == 0);
}

TEST_CASE("a device is found by its UUID alone") {
    CHECK(refused(find_device("0")).code == ErrorCode::NotFound);
    CHECK(refused(use_device("GPU-ffffffff-ffff-ffff-ffff-ffffffffffff"))
              .message.find("is not one of this process's: GPU-") != std::string::npos);
    auto const uuid = devices().value().front().uuid;
    CHECK(find_device("MIG-" + uuid.substr(4)).value().uuid == uuid);  // As nvidia-smi says it.
    CHECK(find_device(uuid.substr(4)).value().uuid == uuid);
}

TEST_CASE(
    "a device that another process has for itself is refused with what helps; it is not lost") {
    auto const uuid = devices().value().front().uuid;
    cudaemu::lose_device(cudaErrorDevicesUnavailable);
    auto const error = refused(use_device(uuid));
    auto const alive = check_alive(uuid);
    cudaemu::lose_device(cudaErrorIllegalAddress);
    auto const lost = check_alive(uuid);
    cudaemu::lose_device(cudaSuccess);
    CHECK(error.code == ErrorCode::Device);
    CHECK(
        error.message.find("compute mode Exclusive Process one process has it: nvidia-smi -c 0") !=
        std::string::npos);
    CHECK(alive);
    CHECK(!lost);
    CHECK(check_alive(uuid));
}

TEST_CASE("an engine's event is waited for on the host: until it happens, a deadline, or a no") {
    use_first_device();
    Exporter engine("lazy");
    engine.ipc(kBytes, 1);  // What it records its event behind.
    std::array<EventHandle, 1> const handles{engine.event()};
    auto const events = open_events(handles).value();
    CHECK(events->count() == 1);
    REQUIRE(engine.ask("record") == "recorded");

    engine.pause();  // It hangs: what its stream has not done yet does not get done.
    CHECK(refused(events->wait(0, kBrief, nullptr, nullptr)).message ==
          "event 0 did not happen within 30 ms");
    std::atomic<bool> stopped = true;
    auto const is_stopped = [](void* flag) {
        return static_cast<std::atomic<bool>*>(flag)->load();
    };
    CHECK(refused(events->wait(0, kPatience, is_stopped, &stopped)).code == ErrorCode::Cancelled);
    CHECK(refused(events->wait(1, kBrief, nullptr, nullptr)).message == "event 1 of a pool of 1");

    engine.go_on();
    CHECK(events->wait(0, kPatience, nullptr, nullptr));
}

TEST_CASE("an event of an engine that died does not hold anybody up") {
    use_first_device();
    Exporter engine("lazy");
    engine.ipc(kBytes, 1);  // What it records its event behind.
    std::array<EventHandle, 1> const handles{engine.event()};
    auto const events = open_events(handles).value();
    REQUIRE(engine.ask("record") == "recorded");
    engine.kill();
    CHECK(!events->wait(0, kBrief, nullptr, nullptr));
}

TEST_CASE("a timeline's word is waited for like an event") {
    use_first_device();
    auto const word = allocate_device_memory(64).value();
    void* const at = word->bytes().data();
    CHECK(refused(wait_timeline(at, 1, kBrief, nullptr, nullptr)).message ==
          "timeline value 1 did not happen within 30 ms");
    REQUIRE(write_timeline(at, 5, nullptr));
    REQUIRE(cudaStreamSynchronize(nullptr) == cudaSuccess);
    CHECK(wait_timeline(at, 5, kPatience, nullptr, nullptr));
    CHECK(!wait_timeline(at, 6, kBrief, nullptr, nullptr));
    CHECK(refused(wait_timeline(word->bytes().data() + 4, 1, kBrief, nullptr, nullptr)).code ==
          ErrorCode::InvalidArgument);
}

TEST_CASE("neither a word is written nor an event recorded inside of a capture") {
    use_first_device();
    auto const word = allocate_device_memory(64).value();
    auto const pool = make_private_event_pool(1).value();
    cudaStream_t stream = nullptr;
    REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed) == cudaSuccess);
    CHECK(refused(write_timeline(word->bytes().data(), 1, stream)).code == ErrorCode::BadState);
    CHECK(refused(pool->record(0, stream)).code == ErrorCode::BadState);
    CHECK(cudaStreamEndCapture(stream, nullptr) == cudaSuccess);
    CHECK(write_timeline(word->bytes().data(), 1, stream));
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

}  // namespace
}  // namespace dkv::cuda
