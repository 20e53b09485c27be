#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace dkv::cuda {
namespace {

constexpr unsigned kWarpsPerBlock = 8;

struct Head {
    std::uint64_t first_id;    // Where the head's ids begin.
    std::uint64_t out_offset;  // Bytes.
    std::uint32_t rows;
};

/// Ids outside [0, tokens) leave a fault: the first to come is kept.
DKV_KERNEL void check_ids_kernel(std::int32_t const* __restrict__ ids,
                                 Head const* __restrict__ heads,
                                 std::uint32_t tokens,
                                 Fault* fault) {
    Head const head = heads[blockIdx.y];
    std::uint32_t const row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= head.rows) return;
    std::int32_t const id = ids[head.first_id + row];
    if (id >= 0 && static_cast<std::uint32_t>(id) < tokens) return;
    if (atomicCAS(&fault->kind, 0U, kBadId) != 0U) return;
    fault->limit = tokens;
    fault->head = blockIdx.y;
    fault->id = id;
}

// One warp copies one row: lane l moves the row's words l, l + 32, l + 64, …
//
//   source   rows of row_words words, strides in words   read once
//   out      rows of row_words words, dense              written once
template <class Word>
DKV_KERNEL void gather_kernel(Word const* __restrict__ source,
                              std::uint64_t head_stride,
                              std::uint64_t token_stride,
                              std::uint64_t word_stride,
                              std::int32_t const* __restrict__ ids,
                              Head const* __restrict__ heads,
                              unsigned char* __restrict__ out,
                              std::uint32_t row_words,
                              Fault const* fault) {
    if (fault->kind != 0) return;  // A refused op writes nothing.
    Head const head = heads[blockIdx.y];
    std::uint32_t const row = blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarpLanes;
    if (row >= head.rows) return;

    auto const token = static_cast<std::uint64_t>(ids[head.first_id + row]);
    Word const* const from = source + blockIdx.y * head_stride + token * token_stride;
    Word* const to =
        reinterpret_cast<Word*>(out + head.out_offset) + std::uint64_t{row} * row_words;
    for (std::uint32_t word = threadIdx.x % kWarpLanes; word < row_words; word += kWarpLanes)
        to[word] = from[word * word_stride];
}

bool is_multiple(std::uint64_t value, std::size_t bytes) {
    return value % bytes == 0;
}

/// Whether every row begins and ends at a multiple of `bytes`, source and target.
bool fits_words_of(std::size_t bytes, GatherArgs const& args) {
    std::size_t const element = bytes_of(args.source.dtype);
    bool fits = args.source.dim_stride == 1 &&
                is_multiple(reinterpret_cast<std::uintptr_t>(args.source.data), bytes) &&
                is_multiple(reinterpret_cast<std::uintptr_t>(args.out.data()), bytes) &&
                is_multiple(args.source.row_bytes(), bytes) &&
                is_multiple(args.source.head_stride * element, bytes) &&
                is_multiple(args.source.token_stride * element, bytes);
    for (std::uint64_t const offset : args.out_offsets)
        fits = fits && is_multiple(offset, bytes);
    return fits;
}

template <class Word>
Result<void> launch_gather(GatherArgs const& args,
                           Head const* heads,
                           std::uint32_t rows_max,
                           Queue& queue) {
    std::size_t const element = bytes_of(args.source.dtype);
    std::uint64_t const words_per_element = element / sizeof(Word);  // Bytes: the odd case.
    auto const in_words = [&](std::uint64_t elements) { return elements * element / sizeof(Word); };
    dim3 const grid((rows_max + kWarpsPerBlock - 1) / kWarpsPerBlock, args.source.heads);
    return launch(
        gather_kernel<Word>, grid, kWarpsPerBlock * kWarpLanes, 0, queue.stream(),
        reinterpret_cast<Word const*>(args.source.data), in_words(args.source.head_stride),
        in_words(args.source.token_stride),
        words_per_element == 0 ? std::uint64_t{1} : args.source.dim_stride * words_per_element,
        args.ids.data(), heads, reinterpret_cast<unsigned char*>(args.out.data()),
        static_cast<std::uint32_t>(args.source.row_bytes() / sizeof(Word)),
        static_cast<Fault const*>(queue.fault()));
}

}  // namespace

Result<void> gather(GatherArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.ids.empty()) return {};
    queue.begin();
    std::vector<Head> heads;
    std::uint64_t first = 0;
    std::uint32_t rows_max = 0;
    for (std::size_t head = 0; head < args.lengths.size(); ++head) {
        heads.push_back({first, args.out_offsets[head], args.lengths[head]});
        first += args.lengths[head];
        rows_max = std::max(rows_max, args.lengths[head]);
    }
    Head const* const on_device = DKV_TRY(queue.upload(std::span<Head const>(heads)));

    constexpr unsigned kCheckThreads = 256;
    dim3 const grid((rows_max + kCheckThreads - 1) / kCheckThreads, args.source.heads);
    DKV_TRY(launch(check_ids_kernel, grid, kCheckThreads, 0, queue.stream(), args.ids.data(),
                   on_device, args.source.tokens, queue.fault()));
    if (fits_words_of(16, args)) return launch_gather<uint4>(args, on_device, rows_max, queue);
    if (fits_words_of(4, args))
        return launch_gather<std::uint32_t>(args, on_device, rows_max, queue);
    return launch_gather<std::uint16_t>(args, on_device, rows_max, queue);
}

}  // namespace dkv::cuda
