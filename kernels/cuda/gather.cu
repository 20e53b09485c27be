#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/gather_rows.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ops.h"

namespace dkv::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kRowsPerLanes = 4;  // Loads under way per thread before its first store.

struct Head {
    std::uint64_t first_id;    // Where the head's ids begin.
    std::uint64_t out_offset;  // Bytes.
    std::uint32_t rows;
};

/// How a row is cut into words.
struct Cut {
    std::uint32_t row_words;
    std::uint32_t element_words;  // 0: the row is one piece.
    std::uint64_t dim_words;      // Between elements.
};

/// Ids outside [0, tokens) leave a fault: the first to come is kept.
DKV_KERNEL void __launch_bounds__(kThreads) check_ids_kernel(std::int32_t const* __restrict__ ids,
                                                             Head const* __restrict__ heads,
                                                             std::uint32_t blocks_per_head,
                                                             std::uint32_t tokens,
                                                             Fault* fault) {
    std::uint32_t const index = blockIdx.x / blocks_per_head;
    Head const head = heads[index];
    std::uint32_t const row = blockIdx.x % blocks_per_head * kThreads + threadIdx.x;
    if (row >= head.rows) return;
    std::int32_t const id = ids[head.first_id + row];
    if (id >= 0 && static_cast<std::uint32_t>(id) < tokens) return;
    if (atomicCAS(&fault->kind, 0U, kBadId) != 0U) return;
    fault->limit = tokens;
    fault->index = index;
    fault->id = id;
}

// `lanes` neighbouring threads copy four rows, word by word: all four loads before the first store.
//
//   source   rows of row_words words             read once
//   out      rows of row_words words, dense      written once
template <class Word>
DKV_KERNEL void __launch_bounds__(kThreads) gather_kernel(RowsOnDevice source,
                                                          Cut cut,
                                                          std::int32_t const* __restrict__ ids,
                                                          Head const* __restrict__ heads,
                                                          std::uint32_t blocks_per_head,
                                                          unsigned lanes,
                                                          unsigned char* __restrict__ out,
                                                          Fault const* fault) {
    if (fault->kind != 0) return;  // A refused op writes nothing.
    std::uint32_t const index = blockIdx.x / blocks_per_head;
    Head const head = heads[index];
    unsigned const groups = kThreads / lanes;
    std::uint32_t const first =
        blockIdx.x % blocks_per_head * groups * kRowsPerLanes + threadIdx.x / lanes;
    if (first >= head.rows) return;
    Word* const to = reinterpret_cast<Word*>(out + head.out_offset);
    Word const* from[kRowsPerLanes];
#pragma unroll
    for (unsigned i = 0; i < kRowsPerLanes; ++i) {
        std::uint32_t const row = first + i * groups;
        std::uint32_t const token =
            row < head.rows ? static_cast<std::uint32_t>(ids[head.first_id + row]) : 0;
        from[i] = reinterpret_cast<Word const*>(source.row(index, token));
    }
    for (std::uint32_t word = threadIdx.x % lanes; word < cut.row_words; word += lanes) {
        std::uint64_t at = word;
        if (cut.element_words != 0)
            at = word / cut.element_words * cut.dim_words + word % cut.element_words;
        Word words[kRowsPerLanes];
#pragma unroll
        for (unsigned i = 0; i < kRowsPerLanes; ++i)
            if (first + i * groups < head.rows) words[i] = from[i][at];
#pragma unroll
        for (unsigned i = 0; i < kRowsPerLanes; ++i)
            if (first + i * groups < head.rows)
                to[std::uint64_t{first + i * groups} * cut.row_words + word] = words[i];
    }
}

/// The widest word, 16 bytes to 1, of which source and target are whole numbers.
std::uint64_t word_of(GatherArgs const& args) {
    std::uint64_t bits =
        word_bytes(args.source) | reinterpret_cast<std::uintptr_t>(args.out.data());
    for (std::size_t head = 0; head < args.lengths.size(); ++head)
        if (args.lengths[head] != 0) bits |= args.out_offsets[head];
    return bits & (~bits + 1);
}

/// Blocks per head, each for `rows` rows.
std::uint32_t blocks_for(std::uint32_t rows_max, std::uint32_t rows) {
    return (rows_max - 1) / rows + 1;
}

template <class Word>
Result<void> copy(GatherArgs const& args, Head const* heads, std::uint32_t rows_max, Queue& queue) {
    RowsView const& view = args.source;
    RowsOnDevice const source = rows_on_device(view);
    std::uint64_t const element = bytes_of(view.dtype);
    Cut cut{static_cast<std::uint32_t>(view.row_bytes() / sizeof(Word)), 0, 0};
    if (source.dim_bytes != element) {
        cut.element_words = static_cast<std::uint32_t>(element / sizeof(Word));
        cut.dim_words = source.dim_bytes / sizeof(Word);
    }
    unsigned lanes = 1;
    while (lanes < kWarpLanes && lanes < cut.row_words)
        lanes *= 2;
    std::uint32_t const blocks = blocks_for(rows_max, kThreads / lanes * kRowsPerLanes);
    unsigned const grid = DKV_TRY(grid_of(std::uint64_t{blocks} * view.heads));
    return launch(gather_kernel<Word>, grid, kThreads, 0, queue.stream(), source, cut,
                  args.ids.data(), heads, blocks, lanes,
                  reinterpret_cast<unsigned char*>(args.out.data()),
                  static_cast<Fault const*>(queue.fault()));
}

}  // namespace

Result<void> gather(GatherArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.source.place != Place::Device)
        return Error{ErrorCode::InvalidArgument, "source is in host memory"};
    if (args.source.row_bytes() > 0xffffffffU)
        return Error{ErrorCode::LimitExceeded,
                     "rows of " + std::to_string(args.source.row_bytes()) + " bytes"};
    if (args.ids.empty()) return {};
    queue.begin();
    std::vector<Head> heads;
    heads.reserve(args.lengths.size());
    std::uint64_t first = 0;
    for (std::size_t head = 0; head < args.lengths.size(); ++head) {
        heads.push_back({first, args.out_offsets[head], args.lengths[head]});
        first += args.lengths[head];
    }
    std::uint32_t const rows_max = *std::max_element(args.lengths.begin(), args.lengths.end());
    Head const* const on_device = DKV_TRY(queue.upload(std::span<Head const>(heads)));

    std::uint32_t const blocks = blocks_for(rows_max, kThreads);
    unsigned const grid = DKV_TRY(grid_of(std::uint64_t{blocks} * args.source.heads));
    DKV_TRY(launch(check_ids_kernel, grid, kThreads, 0, queue.stream(), args.ids.data(), on_device,
                   blocks, args.source.tokens, queue.fault()));
    DKV_TRY(check_blocks_later(args.source, queue));
    if (args.source.head_dim == 0) return {};
    switch (word_of(args)) {
        case 16: return copy<uint4>(args, on_device, rows_max, queue);
        case 8: return copy<uint2>(args, on_device, rows_max, queue);
        case 4: return copy<std::uint32_t>(args, on_device, rows_max, queue);
        case 2: return copy<std::uint16_t>(args, on_device, rows_max, queue);
        default: return copy<std::uint8_t>(args, on_device, rows_max, queue);
    }
}

}  // namespace dkv::cuda
