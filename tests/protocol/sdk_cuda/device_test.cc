// GPUs, and memory that can or cannot be lent: what hosts get of it before any sidecar is there.
#include <array>
#include <cstring>
#include <regex>

#include <cuda.h>
#include <cudaTypedefs.h>

#include "tests/protocol/sdk_cuda/harness.h"

using namespace dkv::test;

namespace {

std::string refusal(dkv_status status, dkv_status wanted) {
    CHECK(status == wanted);
    return dkv_last_error();
}

/// VMM memory of one block, as torch's expandable segments make it.
CUdeviceptr virtual_memory(CUmemAllocationHandleType type, std::size_t* bytes) {
    CUmemAllocationProp wish{};
    wish.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wish.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    wish.requestedHandleTypes = type;
    auto const granularity =
        driver<PFN_cuMemGetAllocationGranularity_v10020>("cuMemGetAllocationGranularity", 10020);
    REQUIRE(granularity(bytes, &wish, CU_MEM_ALLOC_GRANULARITY_MINIMUM) == CUDA_SUCCESS);
    CUmemGenericAllocationHandle handle{};
    CUdeviceptr address = 0;
    REQUIRE(driver<PFN_cuMemCreate_v10020>("cuMemCreate", 10020)(&handle, *bytes, &wish, 0) ==
            CUDA_SUCCESS);
    REQUIRE(driver<PFN_cuMemAddressReserve_v10020>("cuMemAddressReserve", 10020)(
                &address, *bytes, 0, 0, 0) == CUDA_SUCCESS);
    REQUIRE(driver<PFN_cuMemMap_v10020>("cuMemMap", 10020)(address, *bytes, 0, handle, 0) ==
            CUDA_SUCCESS);
    CUmemAccessDesc access{};
    access.location = wish.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    REQUIRE(driver<PFN_cuMemSetAccess_v10020>("cuMemSetAccess", 10020)(address, *bytes, &access,
                                                                       1) == CUDA_SUCCESS);
    REQUIRE(driver<PFN_cuMemRelease_v10020>("cuMemRelease", 10020)(handle) == CUDA_SUCCESS);
    return address;
}

void drop_virtual_memory(CUdeviceptr address, std::size_t bytes) {
    CHECK(driver<PFN_cuMemUnmap_v10020>("cuMemUnmap", 10020)(address, bytes) == CUDA_SUCCESS);
    CHECK(driver<PFN_cuMemAddressFree_v10020>("cuMemAddressFree", 10020)(address, bytes) ==
          CUDA_SUCCESS);
}

}  // namespace

TEST_CASE("GPUs are listed by UUID") {
    std::uint32_t count = 0;
    REQUIRE(dkv_cuda_device_count(&count) == DKV_OK);
    CHECK(count >= 1);
    CHECK(dkv_cuda_is_emulated() == 1);
    CHECK(contains(dkv_cuda_built_with(), "emulated on the CPU"));

    CHECK(std::regex_match(gpu(), std::regex("GPU(-[0-9a-f]{8})(-[0-9a-f]{4}){3}-[0-9a-f]{12}")));
    auto device = sized<dkv_cuda_device>();
    CHECK(contains(refusal(dkv_cuda_get_device(count, &device), DKV_INVALID_ARGUMENT), "device "));
    device.struct_bytes = 4;
    CHECK(contains(refusal(dkv_cuda_get_device(0, &device), DKV_INVALID_ARGUMENT),
                   "device->struct_bytes is 4"));
}

TEST_CASE("a device arena is zeroed, one allocation, and goes as a whole or not at all") {
    for (auto const kind : {DKV_CUDA_ARENA_MALLOC, DKV_CUDA_ARENA_VMM}) {
        CAPTURE(kind);
        constexpr std::uint64_t kBytes = 100'000;
        dkv_arena* const arena = device_arena(kBytes, kind);
        void* const base = dkv_arena_base(arena);
        CHECK(is_device_memory(base));
        CHECK(dkv_arena_bytes(arena) == kBytes);
        CHECK(dkv_arena_allocated_bytes(arena) == kBytes);
        std::array<char, 16> read{1, 2, 3};
        REQUIRE(dkv_cuda_copy_to_host(read.data(), base, read.size()) == DKV_OK);
        CHECK(read == std::array<char, 16>{});

        CHECK(dkv_arena_release(arena, 0, 65'536) == DKV_OK);
        CHECK(dkv_arena_allocated_bytes(arena) == kBytes);
        CHECK(contains(refusal(dkv_arena_release(arena, 1, kBytes), DKV_INVALID_ARGUMENT),
                       "are not inside an arena of 100000"));

        CHECK(dkv_arena_release(arena, 0, kBytes) == DKV_OK);
        CHECK(dkv_arena_allocated_bytes(arena) == 0);
        CHECK_FALSE(is_device_memory(base));
        CHECK(dkv_arena_release(arena, 0, kBytes) == DKV_OK);
        dkv_arena_destroy(arena);
    }
}

TEST_CASE("bytes go to a device and back") {
    dkv_arena* const arena = device_arena(4096);
    std::array<char, 5> const sent{'r', 'o', 'w', 's', '!'};
    std::array<char, 5> back{};
    auto* const at = static_cast<char*>(dkv_arena_base(arena)) + 100;

    REQUIRE(dkv_cuda_copy_to_device(at, sent.data(), sent.size(), nullptr) == DKV_OK);
    REQUIRE(dkv_cuda_copy_to_host(back.data(), at, back.size()) == DKV_OK);

    CHECK(back == sent);
    CHECK(
        contains(refusal(dkv_cuda_copy_to_host(back.data(), sent.data(), 5), DKV_INVALID_ARGUMENT),
                 "are not device memory"));
    auto device = sized<dkv_cuda_device>();
    REQUIRE(dkv_cuda_get_device_of(at, &device) == DKV_OK);
    CHECK(device.uuid == gpu());
    CHECK(contains(refusal(dkv_cuda_get_device_of(sent.data(), &device), DKV_INVALID_ARGUMENT),
                   "are not device memory"));
    dkv_arena_destroy(arena);
}

TEST_CASE("a device arena that cannot be is refused by name") {
    dkv_arena* arena = nullptr;
    auto const uuid = gpu();
    CHECK(refusal(dkv_cuda_arena_create("GPU-0", 1, DKV_CUDA_ARENA_DEFAULT, &arena), DKV_NOT_FOUND)
              .starts_with("device 'GPU-0' is not one of this process's: GPU-"));
    CHECK(contains(refusal(dkv_cuda_arena_create(uuid.c_str(), 0, DKV_CUDA_ARENA_DEFAULT, &arena),
                           DKV_INVALID_ARGUMENT),
                   "0 bytes"));
    CHECK(contains(
        refusal(dkv_cuda_arena_create(uuid.c_str(), UINT64_MAX, DKV_CUDA_ARENA_MALLOC, &arena),
                DKV_LIMIT_EXCEEDED),
        "18446744073709551615 bytes"));
    CHECK(contains(
        refusal(dkv_cuda_arena_create(uuid.c_str(), 1, static_cast<dkv_cuda_arena_kind>(3), &arena),
                DKV_INVALID_ARGUMENT),
        "arena kind is 3, not in 0 … 2"));
    CHECK(arena == nullptr);
}

TEST_CASE("part of an allocation is adopted, and stays its owner's") {
    void* whole = nullptr;
    REQUIRE(cudaMalloc(&whole, 1 << 20) == cudaSuccess);
    auto* const part = static_cast<char*>(whole) + 4096;
    dkv_arena* arena = nullptr;

    REQUIRE_MESSAGE(dkv_cuda_arena_adopt(part, 65'536, &arena) == DKV_OK, dkv_last_error());

    CHECK(dkv_arena_base(arena) == part);
    CHECK(dkv_arena_allocated_bytes(arena) == 0);
    dkv_arena_destroy(arena);
    CHECK(is_device_memory(part));
    CHECK(contains(refusal(dkv_cuda_arena_adopt(part, 1 << 20, &arena), DKV_INVALID_ARGUMENT),
                   "reach past their allocation of"));
    CHECK(cudaFree(whole) == cudaSuccess);
}

TEST_CASE("memory that no other process can open is refused with the hint that helps") {
    dkv_arena* arena = nullptr;
    std::array<char, 64> heap{};
    CHECK(contains(refusal(dkv_cuda_arena_adopt(heap.data(), 64, &arena), DKV_INVALID_ARGUMENT),
                   "are not device memory"));
    CHECK(contains(refusal(dkv_cuda_arena_adopt(nullptr, 0, &arena), DKV_INVALID_ARGUMENT), "no"));

    void* memory = nullptr;
    REQUIRE(cudaMallocHost(&memory, 4096) == cudaSuccess);
    CHECK(contains(refusal(dkv_cuda_arena_adopt(memory, 4096, &arena), DKV_UNSUPPORTED),
                   "pinned host memory, which cannot be exported: use dkv_arena_create"));
    CHECK(cudaFreeHost(memory) == cudaSuccess);

    REQUIRE(cudaMallocManaged(&memory, 4096, cudaMemAttachGlobal) == cudaSuccess);
    CHECK(contains(refusal(dkv_cuda_arena_adopt(memory, 4096, &arena), DKV_UNSUPPORTED),
                   "managed memory, which cannot be exported: use cudaMalloc"));
    CHECK(cudaFree(memory) == cudaSuccess);

    REQUIRE(cudaMallocAsync(&memory, 4096, nullptr) == cudaSuccess);
    CHECK(contains(refusal(dkv_cuda_arena_adopt(memory, 4096, &arena), DKV_UNSUPPORTED),
                   "memory pool (cudaMallocAsync) that cannot be exported: make the pool with "
                   "cudaMemHandleTypePosixFileDescriptor"));
    CHECK(cudaFreeAsync(memory, nullptr) == cudaSuccess);
    CHECK(arena == nullptr);
}

TEST_CASE("torch's expandable segments are refused where they have no descriptor, else adopted") {
    std::size_t bytes = 0;
    dkv_arena* arena = nullptr;
    auto address = virtual_memory(CU_MEM_HANDLE_TYPE_NONE, &bytes);
    CHECK(contains(refusal(dkv_cuda_arena_adopt(reinterpret_cast<void*>(address), bytes, &arena),
                           DKV_UNSUPPORTED),
                   "torch: unset expandable_segments:True in PYTORCH_ALLOC_CONF"));
    drop_virtual_memory(address, bytes);

    address = virtual_memory(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, &bytes);
    CHECK_MESSAGE(dkv_cuda_arena_adopt(reinterpret_cast<void*>(address), bytes, &arena) == DKV_OK,
                  dkv_last_error());
    dkv_arena_destroy(arena);
    drop_virtual_memory(address, bytes);
}

TEST_CASE("an exportable pool's memory is adopted") {
    cudaMemPoolProps wish{};
    wish.allocType = cudaMemAllocationTypePinned;
    wish.handleTypes = cudaMemHandleTypePosixFileDescriptor;
    wish.location.type = cudaMemLocationTypeDevice;
    cudaMemPool_t pool = nullptr;
    REQUIRE(cudaMemPoolCreate(&pool, &wish) == cudaSuccess);
    void* memory = nullptr;
    REQUIRE(cudaMallocFromPoolAsync(&memory, 65'536, pool, nullptr) == cudaSuccess);
    dkv_arena* arena = nullptr;

    CHECK_MESSAGE(dkv_cuda_arena_adopt(memory, 65'536, &arena) == DKV_OK, dkv_last_error());

    dkv_arena_destroy(arena);
    CHECK(cudaFreeAsync(memory, nullptr) == cudaSuccess);
    CHECK(cudaMemPoolDestroy(pool) == cudaSuccess);
}
