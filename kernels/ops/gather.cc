#include "kernels/ops/gather.h"

#include <algorithm>
#include <string>
#include <vector>

namespace dkv {
namespace {

struct Range {
    std::uint64_t begin;
    std::uint64_t end;
    std::size_t head;
};

Result<Range> head_range(GatherArgs const& args, std::size_t head) {
    std::uint64_t const begin = args.out_offsets[head];
    std::uint64_t bytes = 0;
    std::uint64_t end = 0;
    bool wide = __builtin_mul_overflow(args.lengths[head], args.source.row_bytes(), &bytes);
    wide |= __builtin_add_overflow(begin, bytes, &end);
    if (wide || end > args.out.size())
        return invalid("head " + std::to_string(head) + "'s " + std::to_string(args.lengths[head]) +
                       " rows of " + std::to_string(args.source.row_bytes()) + " bytes at offset " +
                       std::to_string(begin) + " do not fit in the " +
                       std::to_string(args.out.size()) + " bytes of out");
    return Range{begin, end, head};
}

Result<std::vector<Range>> head_ranges(GatherArgs const& args) {
    std::vector<Range> ranges;
    ranges.reserve(args.lengths.size());
    for (std::size_t head = 0; head < args.lengths.size(); ++head) {
        Range const range = DKV_TRY(head_range(args, head));
        if (range.begin != range.end) ranges.push_back(range);
    }
    std::sort(ranges.begin(), ranges.end(),
              [](Range const& a, Range const& b) { return a.begin < b.begin; });
    for (std::size_t i = 1; i < ranges.size(); ++i)
        if (ranges[i].begin < ranges[i - 1].end)
            return invalid("rows of heads " + std::to_string(ranges[i - 1].head) + " and " +
                           std::to_string(ranges[i].head) + " overlap in out");
    return ranges;
}

/// Head by head, for an engine may keep its destination between the heads of its source.
Result<void> check_apart(GatherArgs const& args, std::vector<Range> const& ranges) {
    auto const out = reinterpret_cast<std::uintptr_t>(args.out.data());
    // Where the blocks of paged rows are is known to the table alone, which may be a device's.
    if (args.source.paged()) {
        auto const source = reinterpret_cast<std::uintptr_t>(args.source.data);
        std::uint64_t const bytes = DKV_TRY(extent_bytes(args.source));
        for (Range const& range : ranges)
            if (out + range.begin < source + bytes && source < out + range.end)
                return invalid("out overlaps the blocks of source: rows of head " +
                               std::to_string(range.head) + " would be written between them");
        return {};
    }
    RowsView one_head = args.source;
    one_head.heads = 1;
    std::uint64_t const head_bytes = DKV_TRY(extent_bytes(one_head));
    for (std::uint32_t head = 0; head < args.source.heads; ++head) {
        auto const source = reinterpret_cast<std::uintptr_t>(args.source.row(head, 0));
        for (Range const& range : ranges)
            if (out + range.begin < source + head_bytes && source < out + range.end)
                return invalid("out overlaps source: rows of head " + std::to_string(range.head) +
                               " would be written over head " + std::to_string(head));
    }
    return {};
}

}  // namespace

Result<void> check(GatherArgs const& args) {
    DKV_TRY(check_elements("lengths", args.lengths.size(), {args.source.heads}));
    DKV_TRY(check_elements("out_offsets", args.out_offsets.size(), {args.source.heads}));
    std::uint64_t rows = 0;
    for (std::uint32_t const length : args.lengths)
        rows += length;
    DKV_TRY(check_elements("ids", args.ids.size(), {rows}));
    DKV_TRY(check_memory("source", args.source));
    auto const ranges = DKV_TRY(head_ranges(args));

    std::uint64_t const source_bytes = DKV_TRY(extent_bytes(args.source));
    auto const source = reinterpret_cast<std::uintptr_t>(args.source.data);
    auto const out = reinterpret_cast<std::uintptr_t>(args.out.data());
    bool const near = source < out + args.out.size() && out < source + source_bytes;
    return near ? check_apart(args, ranges) : Result<void>();
}

}  // namespace dkv
