#include <cmath>

#include "tests/tools/cuda_emu/launch.h"

namespace dkv::test {
namespace {

static __global__ void reversed(int const* in, int* out) {
    EXTERN_SHARED(int, tile);
    __shared__ int also[256];
    unsigned const i = threadIdx.x;
    tile[i] = in[blockIdx.x * blockDim.x + i];
    also[i] = static_cast<int>(i);
    __syncthreads();
    out[blockIdx.x * blockDim.x + i] = tile[blockDim.x - 1 - i] * 1000 + also[blockDim.x - 1 - i];
}

TEST_CASE("threads of a block see each other's shared memory behind __syncthreads") {
    std::vector<int> in(3 * 200);
    for (std::size_t i = 0; i < in.size(); ++i)
        in[i] = static_cast<int>(i);
    OnDevice<int> const source(in);
    OnDevice<int> out(in.size());

    launch(reversed, 3, 200, 200 * sizeof(int), source.data(), out.data());

    CHECK(out.fetch()[0] == 199 * 1000 + 199);
    CHECK(out.fetch()[200] == 399 * 1000 + 199);
}

template <class T>
static __global__ void unwritten(T* out) {
    EXTERN_SHARED(float, dynamic);
    __shared__ T fixed[32];
    out[threadIdx.x] = fixed[threadIdx.x] + static_cast<T>(dynamic[threadIdx.x]);
    __syncthreads();
    fixed[threadIdx.x] = 1;  // Must not be seen by the next block.
    dynamic[threadIdx.x] = 1;
}

TEST_CASE("shared memory that a block did not write holds NaNs, in every block") {
    OnDevice<float> out(32);

    launch(unwritten<float>, 2, 32, 32 * sizeof(float), out.data());

    for (float const value : out.fetch())
        CHECK(std::isnan(value));
}

static __global__ void counted(int* out) {
    int const count = __syncthreads_count(threadIdx.x % 3 == 0);
    int const all = __syncthreads_and(threadIdx.x < 100);
    int const any = __syncthreads_or(threadIdx.x == 99);
    if (threadIdx.x == 7) {
        out[0] = count;
        out[1] = all;
        out[2] = any;
    }
}

TEST_CASE("barriers count, and and or their predicates") {
    OnDevice<int> out(3);

    launch(counted, 1, 100, 0, out.data());

    CHECK(out.fetch() == std::vector<int>{34, 1, 1});
}

static __global__ void early(int* out) {
    if (threadIdx.x % 2 == 0) return;
    __syncthreads();
    atomicAdd(out, 1);
}

TEST_CASE("a barrier waits for the threads that have not returned") {
    OnDevice<int> out(std::vector<int>{0});

    launch(early, 4, 64, 0, out.data());

    CHECK(out.fetch()[0] == 4 * 32);
}

}  // namespace
}  // namespace dkv::test
