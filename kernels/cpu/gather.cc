#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cpu/ops.h"

namespace dkv::cpu {
namespace {

constexpr std::size_t kItemRows = 256;
constexpr std::size_t kLineBytes = 64;
// How far ahead of the copy rows are asked for: the processor cannot predict which rows are chosen.
constexpr std::size_t kAheadBytes = 4096;

/// Some rows of one head: what a worker copies at a time.
struct Item {
    std::uint32_t head;
    std::span<std::int32_t const> ids;
    std::byte* out;
};

Result<void> check_ids(GatherArgs const& args) {
    std::size_t row = 0;
    for (std::size_t head = 0; head < args.lengths.size(); ++head) {
        for (std::uint32_t i = 0; i < args.lengths[head]; ++i, ++row) {
            std::int32_t const id = args.ids[row];
            if (id < 0 || static_cast<std::uint32_t>(id) >= args.source.tokens)
                return Error{ErrorCode::InvalidArgument,
                             "id " + std::to_string(id) + " of head " + std::to_string(head) +
                                 " is not in [0, " + std::to_string(args.source.tokens) + ")"};
        }
    }
    return {};
}

std::vector<Item> split(GatherArgs const& args) {
    std::vector<Item> items;
    auto ids = args.ids;
    for (std::uint32_t head = 0; head < args.source.heads; ++head) {
        auto head_ids = ids.first(args.lengths[head]);
        ids = ids.subspan(args.lengths[head]);
        std::byte* out = args.out.data() + args.out_offsets[head];
        while (!head_ids.empty()) {
            auto const part = head_ids.first(std::min(kItemRows, head_ids.size()));
            items.push_back({head, part, out});
            head_ids = head_ids.subspan(part.size());
            out += part.size() * args.source.row_bytes();
        }
    }
    return items;
}

void prefetch(std::byte const* row, std::size_t bytes) {
    for (std::size_t at = 0; at < bytes; at += kLineBytes)
        __builtin_prefetch(row + at);
}

/// Rows whose elements lie side by side. Neighbours in memory are copied together: a window or a
/// generous budget is a few long runs.
void copy_rows(RowsView const& source, Item const& item) {
    std::uint64_t const row_bytes = source.row_bytes();
    bool const dense = source.token_stride == source.head_dim && !source.paged();
    std::size_t const rows_ahead = kAheadBytes / row_bytes + 1;
    auto const row = [&](std::size_t i) {
        return source.row(item.head, static_cast<std::uint32_t>(item.ids[i]));
    };
    std::byte* out = item.out;
    for (std::size_t i = 0; i < item.ids.size();) {
        if (i + rows_ahead < item.ids.size()) prefetch(row(i + rows_ahead), row_bytes);
        std::size_t end = i + 1;
        while (dense && end < item.ids.size() && item.ids[end] == item.ids[end - 1] + 1)
            ++end;
        std::size_t const bytes = (end - i) * row_bytes;
        std::memcpy(out, row(i), bytes);
        out += bytes;
        i = end;
    }
}

void copy_elements(RowsView const& source, Item const& item) {
    std::size_t const element_bytes = bytes_of(source.dtype);
    std::byte* out = item.out;
    for (std::int32_t const id : item.ids) {
        std::byte const* element = source.row(item.head, static_cast<std::uint32_t>(id));
        for (std::uint32_t dim = 0; dim < source.head_dim; ++dim) {
            std::memcpy(out, element, element_bytes);
            out += element_bytes;
            element += source.dim_stride * element_bytes;
        }
    }
}

}  // namespace

Result<void> gather(GatherArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    DKV_TRY(check_ids(args));
    if (args.source.place != Place::Host)
        return Error{ErrorCode::InvalidArgument, "source is in device memory"};
    if (args.source.head_dim == 0) return {};

    auto const items = split(args);
    workers.for_each(items.size(), [&](std::size_t index, std::size_t /*worker*/) {
        if (args.source.dim_stride == 1)
            copy_rows(args.source, items[index]);
        else
            copy_elements(args.source, items[index]);
    });
    return {};
}

}  // namespace dkv::cpu
