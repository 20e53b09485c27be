// Small kernels in the ways of the shipped ones, each with a check of its numbers. They are right:
// mutants.py compiles copies of this file in which one thing is wrong.
//
//   planted <check>   exits with 1 and says so when the numbers are wrong
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/primitives.h"

namespace {

using dkv::cuda::kAllLanes;
using dkv::cuda::kWarpLanes;

constexpr unsigned kThreads = 128;

void must(cudaError_t status) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "planted: %s\n", cudaGetErrorString(status));
    std::exit(2);
}

template <class T>
class Device {
public:
    explicit Device(std::vector<T> const& host) : count_(host.size()) {
        must(cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(T)));
        must(cudaMemcpy(data_, host.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
        // From pageable memory it may return before the last byte is there: streams that do not
        // wait for the default one must not begin before that.
        must(cudaDeviceSynchronize());
    }
    ~Device() { static_cast<void>(cudaFree(data_)); }
    Device(Device const&) = delete;
    Device& operator=(Device const&) = delete;
    T* data() const { return data_; }
    std::vector<T> fetch() const {
        std::vector<T> host(count_);
        must(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
        return host;
    }

private:
    T* data_ = nullptr;
    std::size_t count_;
};

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), dim3 grid, cudaStream_t stream, Arguments... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    must(cudaLaunchKernelEx(&config, kernel, arguments...));
}

std::vector<float> counted(std::size_t count) {
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i)
        values[i] = static_cast<float>(i % 64);
    return values;
}

bool right(char const* what, double value, double expected) {
    if (value == expected) return true;
    std::fprintf(stderr, "wrong numbers: %s is %g, not %g\n", what, value, expected);
    return false;
}

// One block sums `count` values: a register each, a warp's butterfly, the warps' sums.
DKV_KERNEL void sum_kernel(float const* __restrict__ values, unsigned count, float* out) {
    __shared__ float sums[kThreads / kWarpLanes];
    unsigned const lane = threadIdx.x % kWarpLanes;
    float mine = 0;
    for (unsigned i = threadIdx.x; i < count; i += kThreads)
        mine += values[i];
    for (int step = 16; step > 0; step /= 2)
        mine += __shfl_xor_sync(kAllLanes, mine, step);
    if (lane == 0) sums[threadIdx.x / kWarpLanes] = mine;
    __syncthreads();  // The warps' sums.
    if (threadIdx.x == 0) out[0] = sums[0] + sums[1] + sums[2] + sums[3];
}

bool check_sum() {
    Device<float> const values(counted(1000));
    Device<float> const out({0.0F});
    run(sum_kernel, dim3(1), nullptr, static_cast<float const*>(values.data()), 1000U, out.data());
    double expected = 0;
    for (float const value : counted(1000))
        expected += static_cast<double>(value);
    return right("the sum", static_cast<double>(out.fetch()[0]), expected);
}

// Each warp turns its 32 values around through shared memory.
DKV_KERNEL void turn_kernel(float const* __restrict__ in, float* __restrict__ out) {
    __shared__ float tile[kThreads];
    unsigned const lane = threadIdx.x % kWarpLanes;
    unsigned const first = threadIdx.x - lane;
    tile[threadIdx.x] = in[threadIdx.x];
    __syncwarp();  // The warp's tile.
    out[threadIdx.x] = tile[first + kWarpLanes - 1 - lane];
}

bool check_turn() {
    Device<float> const in(counted(kThreads));
    Device<float> const out(counted(kThreads));
    run(turn_kernel, dim3(1), nullptr, static_cast<float const*>(in.data()), out.data());
    return right("the first", static_cast<double>(out.fetch()[0]), 31);
}

// Sixteen bytes a thread; the grid is larger than the array.
DKV_KERNEL void copy_kernel(uint4 const* __restrict__ in, uint4* __restrict__ out, unsigned count) {
    unsigned const i = blockIdx.x * kThreads + threadIdx.x;
    if (i >= count) return;  // The end of the array.
    out[i] = in[i];
}

bool check_copy() {
    Device<float> const in(counted(4 * 200 + 4));
    Device<float> const out(counted(4 * 200));
    run(copy_kernel, dim3(2), nullptr, reinterpret_cast<uint4 const*>(in.data() + 4),
        reinterpret_cast<uint4*>(out.data()), 200U);
    return right("the last", static_cast<double>(out.fetch()[799]), 803 % 64);
}

// The second stream's kernel reads what the first one's wrote.
DKV_KERNEL void add_one_kernel(float* values) {
    values[threadIdx.x] += 1;
}

bool check_streams() {
    Device<float> const values(std::vector<float>(kThreads, 1.0F));
    cudaStream_t first = nullptr;
    cudaStream_t second = nullptr;
    cudaEvent_t written = nullptr;
    must(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    must(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    must(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
    run(add_one_kernel, dim3(1), first, values.data());
    must(cudaEventRecord(written, first));
    must(cudaStreamWaitEvent(second, written, 0));  // The first stream's kernel.
    std::vector<float> host(kThreads);
    void* pinned = nullptr;
    must(cudaMallocHost(&pinned, kThreads * sizeof(float)));
    must(cudaMemcpyAsync(pinned, values.data(), kThreads * sizeof(float), cudaMemcpyDeviceToHost,
                         second));
    must(cudaStreamSynchronize(second));
    std::memcpy(host.data(), pinned, kThreads * sizeof(float));
    must(cudaStreamSynchronize(first));
    must(cudaFreeHost(pinned));
    return right("the copy", static_cast<double>(host[0]), 2);
}

// Two stages of cp.async in front of a product of the tensor cores: c = a · b of [16, 32] and
// [32, 8], rows of b as columns. One warp works, the others help to copy.
DKV_KERNEL void product_kernel(__half const* __restrict__ a,
                               __half const* __restrict__ b,
                               float* __restrict__ c) {
    __shared__ __align__(16) __half tile_a[2][16][16];
    __shared__ __align__(16) __half tile_b[2][8][16];
    unsigned const lane = threadIdx.x % kWarpLanes;
    for (unsigned stage = 0; stage < 2; ++stage) {
        if (threadIdx.x < 32) {
            unsigned const row = threadIdx.x / 2;
            unsigned const half = threadIdx.x % 2;
            dkv::cuda::copy_16_async(&tile_a[stage][row][8 * half],
                                     a + row * 32 + 16 * stage + 8 * half, true);
        } else if (threadIdx.x < 48) {
            unsigned const row = (threadIdx.x - 32) / 2;
            unsigned const half = threadIdx.x % 2;
            dkv::cuda::copy_16_async(&tile_b[stage][row][8 * half],
                                     b + row * 32 + 16 * stage + 8 * half, true);
        }
        dkv::cuda::commit_copies();
    }
    float sums[4] = {};
    for (unsigned stage = 0; stage < 2; ++stage) {
        if (stage == 0) dkv::cuda::wait_copies<1>();
        if (stage == 1) dkv::cuda::wait_copies<0>();  // The second stage.
        // Everybody's copies.
        __syncthreads();
        if (threadIdx.x < kWarpLanes) {
            std::uint32_t words[4];
            dkv::cuda::load_matrices(words, &tile_a[stage][lane % 16][8 * (lane / 16)]);
            auto const* const column =
                reinterpret_cast<std::uint32_t const*>(tile_b[stage][lane / 4]);
            dkv::cuda::mma_f16(sums, words, column[lane % 4], column[lane % 4 + 4]);
        }
    }
    if (threadIdx.x >= kWarpLanes) return;
    unsigned const row = lane / 4;
    unsigned const at = lane % 4 * 2;
    c[row * 8 + at] = sums[0];
    c[row * 8 + at + 1] = sums[1];
    c[(row + 8) * 8 + at] = sums[2];
    c[(row + 8) * 8 + at + 1] = sums[3];
}

bool check_product() {
    std::vector<__half> a;
    std::vector<__half> b;
    for (int i = 0; i < 16 * 32; ++i)
        a.push_back(__float2half(static_cast<float>(i * 7 % 13 - 6)));
    for (int i = 0; i < 8 * 32; ++i)
        b.push_back(__float2half(static_cast<float>(i * 5 % 11 - 5)));
    Device<__half> const on_device_a(a);
    Device<__half> const on_device_b(b);
    Device<float> const c(counted(16 * 8));
    run(product_kernel, dim3(1), nullptr, static_cast<__half const*>(on_device_a.data()),
        static_cast<__half const*>(on_device_b.data()), c.data());
    std::vector<float> const result = c.fetch();
    bool all = true;
    for (std::size_t row = 0; row < 16; ++row)
        for (std::size_t column = 0; column < 8; ++column) {
            double sum = 0;
            for (std::size_t i = 0; i < 32; ++i)
                sum += static_cast<double>(__half2float(a[row * 32 + i])) *
                       static_cast<double>(__half2float(b[column * 32 + i]));
            all = all && right("an element of the product",
                               static_cast<double>(result[row * 8 + column]), sum);
        }
    return all;
}

// Each block adds to what it finds in shared memory that it has cleared.
DKV_KERNEL void tally_kernel(float const* __restrict__ values, unsigned* __restrict__ out) {
    __shared__ unsigned bins[64];
    if (threadIdx.x < 64) bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&bins[static_cast<unsigned>(values[blockIdx.x * kThreads + threadIdx.x])], 1U);
    __syncthreads();
    if (threadIdx.x < 64) atomicAdd(&out[threadIdx.x], bins[threadIdx.x]);
}

bool check_tally() {
    Device<float> const values(counted(4 * kThreads));
    Device<unsigned> const out(std::vector<unsigned>(64, 0));
    run(tally_kernel, dim3(4), nullptr, static_cast<float const*>(values.data()), out.data());
    return right("a bin", static_cast<double>(out.fetch()[63]), 8);
}

}  // namespace

int main(int count, char** arguments) {
    struct Check {
        char const* name;
        bool (*run)();
    };
    constexpr Check kChecks[] = {{"sum", check_sum},         {"turn", check_turn},
                                 {"copy", check_copy},       {"streams", check_streams},
                                 {"product", check_product}, {"tally", check_tally}};
    for (Check const& check : kChecks)
        if (count == 2 && std::strcmp(arguments[1], check.name) == 0) return check.run() ? 0 : 1;
    std::fprintf(stderr, "usage: planted sum|turn|copy|streams|product|tally\n");
    return 2;
}
