#include <chrono>
#include <cmath>
#include <cstdio>

#include "tests/tools/cuda_emu/launch.h"

namespace dkv::test {
namespace {

static __global__ void sum_of_warp(unsigned* out) {
    unsigned value = threadIdx.x;
    for (int by = 16; by > 0; by /= 2)
        value += __shfl_xor_sync(~0U, value, by);
    out[threadIdx.x] = value;
}

TEST_CASE("a warp's butterfly of shuffles sums over its 32 lanes") {
    OnDevice<unsigned> out(64);

    launch(sum_of_warp, 1, 64, 0, out.data());

    for (unsigned i = 0; i < 64; ++i)
        CHECK(out.fetch()[i] == (i < 32 ? 496 : 496 + 32 * 32));
}

static __global__ void votes(unsigned* out) {
    unsigned const lane = threadIdx.x;
    if (lane >= 20) return;  // Lanes that returned have no vote.
    unsigned const odd = __ballot_sync(0xfffffU, lane % 2 != 0);
    int const all = __all_sync(0xfffffU, lane < 20);
    unsigned const sum = __reduce_add_sync(0xfffffU, lane);
    unsigned const same = __match_any_sync(0xfffffU, lane / 10);
    if (lane == 0) {
        out[0] = odd;
        out[1] = static_cast<unsigned>(all);
        out[2] = sum;
        out[3] = same;
    }
}

TEST_CASE("votes, reductions and matches are over the lanes of the mask") {
    OnDevice<unsigned> out(4);

    launch(votes, 1, 32, 0, out.data());

    CHECK(out.fetch() == std::vector<unsigned>{0xaaaaa, 1, 190, 0x3ff});
}

static __global__ void halves_apart(unsigned* out) {
    unsigned const lane = threadIdx.x;
    unsigned value = lane;
    // The halves of the warp meet on their own, one of them more often.
    if (lane < 16) {
        for (int turn = 0; turn < 5; ++turn)
            value += __shfl_xor_sync(0x0000ffffU, value, 1);
    } else {
        value += __shfl_xor_sync(0xffff0000U, value, 1);
    }
    out[lane] = value + __shfl_sync(~0U, lane, 31);
}

TEST_CASE("parts of a warp meet at different rates, and then all of it") {
    OnDevice<unsigned> out(32);

    launch(halves_apart, 1, 32, 0, out.data());

    CHECK(out.fetch()[0] == 16 * (0 + 1) + 31);
    CHECK(out.fetch()[17] == 16 + 17 + 31);
}

static __global__ void product(float* out) {
    float const mine[2] = {static_cast<float>(threadIdx.x), 2.0F};
    float result = 0;
    cudaemu::collective(
        mine, sizeof mine, &result, sizeof result,
        [](cudaemu::LaneBytes all, std::byte(*results)[cudaemu::kLaneBytes]) {
            float sum = 0;
            for (unsigned lane = 0; lane < cudaemu::kLanes; ++lane) {
                float pair[2];
                std::memcpy(pair, all[lane], sizeof pair);
                sum += pair[0] * pair[1];
            }
            for (unsigned lane = 0; lane < cudaemu::kLanes; ++lane) {
                float const mine_too = sum + static_cast<float>(lane);
                std::memcpy(results[lane], &mine_too, sizeof mine_too);
            }
        },
        "product");
    out[threadIdx.x] = result;
}

TEST_CASE("a collective computes once for the warp and gives each lane its own result") {
    OnDevice<float> out(32);

    launch(product, 1, 32, 0, out.data());

    for (unsigned lane = 0; lane < 32; ++lane)
        CHECK(out.fetch()[lane] == 992 + static_cast<float>(lane));
}

static __global__ void copied(float const* in, float* out, bool waits) {
    __shared__ float tile[2][32][4];
    for (unsigned stage = 0; stage < 2; ++stage) {
        cudaemu::async_copy(tile[stage][threadIdx.x], in + 4 * (32 * stage + threadIdx.x), 16,
                            stage == 0 ? 16 : 8);
        cudaemu::commit_group();
    }
    if (waits) cudaemu::wait_group(1);
    __syncthreads();
    out[threadIdx.x] = tile[0][31 - threadIdx.x][1];
    if (waits) cudaemu::wait_group(0);
    __syncthreads();
    out[32 + threadIdx.x] = tile[1][31 - threadIdx.x][1];
    out[64 + threadIdx.x] = tile[1][31 - threadIdx.x][2];
}

TEST_CASE("an asynchronous copy arrives with the wait that covers it, and not before") {
    std::vector<float> in(256);
    for (std::size_t i = 0; i < in.size(); ++i)
        in[i] = static_cast<float>(i);
    OnDevice<float> const source(in);
    OnDevice<float> out(96);

    launch(copied, 1, 32, 0, source.data(), out.data(), true);
    CHECK(out.fetch()[0] == 31 * 4 + 1);
    CHECK(out.fetch()[32] == 128 + 31 * 4 + 1);
    CHECK(out.fetch()[64] == 0);  // Behind what was to be read: zeros.

    launch(copied, 1, 32, 0, source.data(), out.data(), false);
    CHECK(std::isnan(out.fetch()[0]));
}

static __global__ void butterflies(unsigned* out, int turns) {
    unsigned value = threadIdx.x;
    for (int turn = 0; turn < turns; ++turn)
        value ^= __shfl_xor_sync(~0U, value, 1 << (turn % 5));
    out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}

TEST_CASE("how long a rendezvous takes" * doctest::skip()) {
    OnDevice<unsigned> out(256);
    for (unsigned threads : {32U, 256U}) {
        constexpr int kTurns = 20000;
        auto const begin = std::chrono::steady_clock::now();
        launch(butterflies, 1, threads, 0, out.data(), kTurns);
        std::chrono::duration<double, std::nano> const spent =
            std::chrono::steady_clock::now() - begin;
        std::printf("%u threads: %.0f ns per rendezvous\n", threads,
                    spent.count() / kTurns / (threads / 32.0));
    }
}

}  // namespace
}  // namespace dkv::test
