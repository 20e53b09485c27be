// What ends a kernel's program, and in which words: each mistake is a case of its own, skipped
// here, that this same program runs in a process of its own.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>

#include "tests/tools/cuda_emu/launch.h"

namespace dkv::test {
namespace {

/// What the case says before it ends, and how it ends, when it runs under `environment`.
std::string output_of(std::string const& mistake, std::string const& environment = "") {
    auto const program = "/proc/" + std::to_string(::getpid()) + "/exe";
    std::string const command =
        environment + " " + program + " --no-skip --test-case='mistake: " + mistake + "' 2>&1";
    std::FILE* const pipe = ::popen(command.c_str(), "r");
    REQUIRE(pipe != nullptr);
    std::string text;
    std::array<char, 256> part{};
    while (std::fgets(part.data(), part.size(), pipe) != nullptr)
        text += part.data();
    CHECK(::pclose(pipe) != 0);
    return text;
}

bool says(std::string const& mistake, char const* words) {
    std::string const text = output_of(mistake);
    INFO(text);
    CHECK(text.find("fault_test.cc") != std::string::npos);  // Where.
    return text.find(words) != std::string::npos;
}

static __global__ void copies_from(float const* from) {
    __shared__ __align__(16) float tile[4];
    cudaemu::async_copy(tile, from, 16);
    cudaemu::commit_group();
    cudaemu::wait_group(0);
}

TEST_CASE("mistake: cp.async from the host" * doctest::skip()) {
    alignas(16) float const host[4] = {};
    launch(copies_from, 1, 1, 0, static_cast<float const*>(host));
}

TEST_CASE("mistake: cp.async from behind the end" * doctest::skip()) {
    OnDevice<float> const four(4);
    launch(copies_from, 1, 1, 0, static_cast<float const*>(four.data() + 4));
}

TEST_CASE("an asynchronous copy reads device memory and nothing else") {
    CHECK(says("cp.async from the host", "cp.async from memory that is not the device's"));
    CHECK(says("cp.async from behind the end", "cp.async from memory that is not the device's"));
}

static __global__ void copies_to(float* to, float const* from) {
    cudaemu::async_copy(to, from, 16);
}
static __global__ void copies_past(float const* from) {
    EXTERN_SHARED(float, tile);
    cudaemu::async_copy(tile + 4, from, 16);
}

TEST_CASE("mistake: cp.async to global memory" * doctest::skip()) {
    OnDevice<float> const four(4);
    launch(copies_to, 1, 1, 0, four.data(), static_cast<float const*>(four.data()));
}

TEST_CASE("mistake: cp.async past the dynamic memory" * doctest::skip()) {
    OnDevice<float> const four(4);
    launch(copies_past, 1, 1, 16, static_cast<float const*>(four.data()));
}

TEST_CASE("an asynchronous copy writes the block's shared memory and nothing else") {
    CHECK(says("cp.async to global memory", "cp.async to memory that is not shared"));
    CHECK(says("cp.async past the dynamic memory", "cp.async to memory that is not shared"));
}

static __global__ void uses_much(int* out) {
    EXTERN_SHARED(int, words);
    words[threadIdx.x] = 1;
    if (out != nullptr) out[0] = words[threadIdx.x];
}

/// Whether a kernel may have so many KiB of dynamic shared memory.
bool gets(int kib) {
    auto const status =
        cudaFuncSetAttribute(uses_much, cudaFuncAttributeMaxDynamicSharedMemorySize, kib << 10);
    static_cast<void>(cudaGetLastError());
    return status == cudaSuccess;
}

TEST_CASE("a block gets no more shared memory than it would on every architecture") {
    CHECK(gets(99));
    CHECK_FALSE(gets(100));
}

TEST_CASE("mistake: 227 KiB" * doctest::skip()) {
    cudaDeviceProp properties{};
    REQUIRE(cudaGetDeviceProperties(&properties, 0) == cudaSuccess);
    CHECK(properties.major == 9);
    CHECK(properties.sharedMemPerBlockOptin == std::size_t{227} << 10U);
    CHECK(gets(227));
    CHECK_FALSE(gets(228));
}

TEST_CASE("CUDAEMU_ARCH says whose limits hold") {
    // The case itself fails where the limit is another.
    std::string const text = output_of("227 KiB", "CUDAEMU_ARCH=86");
    INFO(text);
    CHECK(text.find("CHECK( gets(227) )") != std::string::npos);
    CHECK(output_of("227 KiB", "CUDAEMU_ARCH=81").find("CUDAEMU_ARCH is '81', not 80, 86") !=
          std::string::npos);
    auto const program = "/proc/" + std::to_string(::getpid()) + "/exe";
    std::string const right =
        "CUDAEMU_ARCH=90 " + program + " --no-skip --test-case='mistake: 227 KiB' > /dev/null 2>&1";
    CHECK(std::system(right.c_str()) == 0);
}

}  // namespace
}  // namespace dkv::test
