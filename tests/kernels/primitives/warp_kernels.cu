#include "kernels/cuda/launch.h"
#include "kernels/cuda/primitives.h"
#include "kernels/cuda/queue.h"
#include "tests/kernels/primitives/warp_kernels.h"

namespace dkv::test {
namespace {

using cuda::kWarpLanes;
using cuda::Queue;

__device__ void multiply(
    bool bf16, float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    if (bf16)
        cuda::mma_bf16(c, a, b0, b1);
    else
        cuda::mma_f16(c, a, b0, b1);
}

__device__ void store_fragment(float const (&c)[4], float* out) {
    unsigned const g = threadIdx.x / 4;
    unsigned const t = threadIdx.x % 4;
    for (unsigned i = 0; i < 4; ++i)
        out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
}

DKV_KERNEL void product_kernel(
    bool bf16, std::uint16_t const* a, std::uint16_t const* b, float const* c, float* out) {
    unsigned const g = threadIdx.x / 4;
    unsigned const t = threadIdx.x % 4;
    auto const word = [](std::uint16_t low, std::uint16_t high) {
        return low | static_cast<std::uint32_t>(high) << 16U;
    };
    std::uint32_t of_a[4];
    for (unsigned i = 0; i < 4; ++i) {
        std::uint16_t const* const pair = a + (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8;
        of_a[i] = word(pair[0], pair[1]);
    }
    std::uint32_t of_b[2];
    for (unsigned i = 0; i < 2; ++i)
        of_b[i] = word(b[(2 * t + 8 * i) * 8 + g], b[(2 * t + 8 * i + 1) * 8 + g]);
    float of_c[4];
    for (unsigned i = 0; i < 4; ++i)
        of_c[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    multiply(bf16, of_c, of_a, of_b[0], of_b[1]);
    store_fragment(of_c, out);
}

DKV_KERNEL void product_of_rows_kernel(bool bf16,
                                       std::uint16_t const* a,
                                       std::uint16_t const* b,
                                       float* out) {
    __shared__ __align__(16) std::uint16_t rows_a[16 * 16];
    __shared__ __align__(16) std::uint16_t rows_b[8 * 16];
    for (unsigned i = threadIdx.x; i < 16 * 16; i += kWarpLanes)
        rows_a[i] = a[i];
    for (unsigned i = threadIdx.x; i < 8 * 16; i += kWarpLanes)
        rows_b[i] = b[i];
    __syncthreads();
    unsigned const lane = threadIdx.x;
    std::uint32_t of_a[4];
    cuda::load_matrices(of_a, rows_a + lane % 16 * 16 + lane / 16 * 8);
    std::uint32_t of_b[4];  // Of which two are the same again.
    cuda::load_matrices(of_b, rows_b + lane % 8 * 16 + lane / 8 % 2 * 8);
    float c[4] = {};
    multiply(bf16, c, of_a, of_b[0], of_b[1]);
    store_fragment(c, out);
}

DKV_KERNEL void loaded_kernel(std::uint16_t const* matrices, std::uint32_t* out) {
    // Rows lie apart, and not in their order.
    __shared__ __align__(16) std::uint16_t rows[32 * 24];
    for (unsigned i = threadIdx.x; i < 32 * 8; i += kWarpLanes)
        rows[(31 - i / 8) * 24 + i % 8] = matrices[i];
    __syncthreads();
    std::uint32_t words[4];
    cuda::load_matrices(words, rows + (31 - threadIdx.x) * 24);
    for (unsigned i = 0; i < 4; ++i)
        out[threadIdx.x * 4 + i] = words[i];
}

DKV_KERNEL void copied_kernel(uint4 const* pieces,
                              std::uint32_t const* present,
                              uint4* first,
                              uint4* both) {
    __shared__ uint4 target[2 * kWarpLanes];
    unsigned const lane = threadIdx.x;
    for (unsigned i = 0; i < 2; ++i) {
        unsigned const piece = 2 * lane + i;
        cuda::copy_16_async(target + piece, pieces + piece, present[piece] != 0);
        cuda::commit_copies();
    }
    cuda::wait_copies<1>();
    __syncthreads();
    // A neighbour's, so that the barrier counts.
    unsigned const other = (lane + 1) % kWarpLanes;
    first[other] = target[2 * other];
    cuda::wait_copies<0>();
    __syncthreads();
    both[2 * other] = target[2 * other];
    both[2 * other + 1] = target[2 * other + 1];
}

DKV_KERNEL void powers_kernel(float const* exponents, float* out) {
    out[threadIdx.x] = cuda::exp2_approx(exponents[threadIdx.x]);
}

/// Uploads, runs and downloads: run(queue, inputs, out).
template <class Out, class Run>
Result<std::vector<Out>> on_one_warp(std::size_t count, Run const& run) {
    auto const queue = DKV_TRY(Queue::create(0));
    queue->begin();
    Out* const out = DKV_TRY(queue->scratch<Out>(count));
    DKV_TRY(run(*queue, out));
    std::vector<Out> host(count);
    DKV_TRY(queue->download_later(static_cast<Out const*>(out), std::span<Out>(host)));
    DKV_TRY(queue->synchronize());
    return host;
}

template <class T>
Result<T const*> upload(Queue& queue, std::vector<T> const& host) {
    return queue.upload(std::span<T const>(host));
}

}  // namespace

Result<std::vector<float>> product(Dtype dtype,
                                   Bits const& a,
                                   Bits const& b,
                                   std::vector<float> const& c) {
    return on_one_warp<float>(16 * 8, [&](Queue& queue, float* out) -> Result<void> {
        auto const* const of_a = DKV_TRY(upload(queue, a));
        auto const* const of_b = DKV_TRY(upload(queue, b));
        auto const* const of_c = DKV_TRY(upload(queue, c));
        return cuda::launch(product_kernel, 1, kWarpLanes, 0, queue.stream(), dtype == Dtype::Bf16,
                            of_a, of_b, of_c, out);
    });
}

Result<std::vector<float>> product_of_rows(Dtype dtype, Bits const& a, Bits const& b_transposed) {
    return on_one_warp<float>(16 * 8, [&](Queue& queue, float* out) -> Result<void> {
        auto const* const of_a = DKV_TRY(upload(queue, a));
        auto const* const of_b = DKV_TRY(upload(queue, b_transposed));
        return cuda::launch(product_of_rows_kernel, 1, kWarpLanes, 0, queue.stream(),
                            dtype == Dtype::Bf16, of_a, of_b, out);
    });
}

Result<Bits> loaded(Bits const& matrices) {
    auto const words = DKV_TRY(
        on_one_warp<std::uint32_t>(32 * 4, [&](Queue& queue, std::uint32_t* out) -> Result<void> {
            auto const* const from = DKV_TRY(upload(queue, matrices));
            return cuda::launch(loaded_kernel, 1, kWarpLanes, 0, queue.stream(), from, out);
        }));
    Bits bits;
    for (std::uint32_t const word : words) {
        bits.push_back(static_cast<std::uint16_t>(word));
        bits.push_back(static_cast<std::uint16_t>(word >> 16U));
    }
    return bits;
}

Result<Copied> copied(std::vector<std::uint32_t> const& words,
                      std::vector<std::uint32_t> const& present) {
    constexpr std::size_t first_words = 4 * kWarpLanes;
    auto const out = DKV_TRY(on_one_warp<std::uint32_t>(
        3 * first_words, [&](Queue& queue, std::uint32_t* target) -> Result<void> {
            auto const* const pieces = DKV_TRY(upload(queue, words));
            auto const* const flags = DKV_TRY(upload(queue, present));
            return cuda::launch(copied_kernel, 1, kWarpLanes, 0, queue.stream(),
                                reinterpret_cast<uint4 const*>(pieces), flags,
                                reinterpret_cast<uint4*>(target),
                                reinterpret_cast<uint4*>(target + first_words));
        }));
    return Copied{{out.begin(), out.begin() + first_words}, {out.begin() + first_words, out.end()}};
}

Result<std::vector<float>> powers(std::vector<float> const& exponents) {
    return on_one_warp<float>(exponents.size(), [&](Queue& queue, float* out) -> Result<void> {
        auto const* const from = DKV_TRY(upload(queue, exponents));
        return cuda::launch(powers_kernel, 1, static_cast<unsigned>(exponents.size()), 0,
                            queue.stream(), from, out);
    });
}

}  // namespace dkv::test
