#include "cli/saved/formats/row_stream.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

namespace dkv {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{4} << 20U;  // A row is of 4 KiB at most.

}  // namespace

Result<std::vector<HeadRows>> rows_of_heads(RowsToWrite const& rows,
                                            std::span<std::uint32_t const> lengths,
                                            std::uint32_t layer) {
    SavedLayer const& source = rows.source;
    std::span<std::int32_t const> ids = rows.rows;
    auto const refuse = [&](std::size_t head, std::string const& what) {
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("layer {}, head {}: {}", layer, head, what)};
    };
    std::vector<HeadRows> heads;
    for (std::uint32_t head = 0; head < lengths.size(); ++head) {
        HeadRows picked{.count = lengths[head],
                        .all = rows.rows.empty(),
                        .ids = {},
                        .at = source.positions_of(head)};
        std::uint32_t const there = source.keys_of(head).tokens;
        if (picked.all && there != picked.count)
            return refuse(head, fmt::format("{} rows, where {} are due", there, picked.count));
        if (!picked.all && ids.size() < picked.count)
            return refuse(head, fmt::format("{} rows, where {} are due", ids.size(), picked.count));
        if (!picked.all) {
            picked.ids = ids.first(picked.count);
            ids = ids.subspan(picked.count);
        }
        for (std::int32_t const id : picked.ids)
            if (id < 0 || static_cast<std::uint32_t>(id) >= there)
                return refuse(head, fmt::format("row {} of {}", id, there));
        heads.push_back(picked);
    }
    if (!ids.empty()) return refuse(heads.size(), fmt::format("{} rows of no head", ids.size()));
    return heads;
}

Result<RowStream> RowStream::create(Backend& backend) {
    return RowStream(backend, DKV_TRY(backend.allocate(kBufferBytes)));
}

Result<void> RowStream::send(RowsView const& head, HeadRows const& rows, Sink const& sink) {
    std::uint64_t const row_bytes = head.row_bytes();
    auto const step = static_cast<std::uint32_t>(kBufferBytes / row_bytes);
    DKV_ASSERT(step > 0);
    bool const as_it_is = rows.all && head.dim_stride == 1 && head.token_stride == head.head_dim;
    for (std::uint32_t first = 0; first < rows.count; first += step) {
        std::uint32_t const count = std::min(step, rows.count - first);
        if (as_it_is) {
            DKV_TRY(sink({head.row(0, first), count * row_bytes}, first));
            continue;
        }
        std::span<std::int32_t const> ids;
        if (rows.all) {
            ids_.resize(count);
            std::iota(ids_.begin(), ids_.end(), static_cast<std::int32_t>(first));
            ids = ids_;
        } else {
            ids = rows.ids.subspan(first, count);
        }
        std::uint64_t const offset = 0;
        auto const out = buffer_->bytes().first(count * row_bytes);
        DKV_TRY(backend_->gather({.source = head,
                                  .ids = ids,
                                  .lengths = std::span(&count, 1),
                                  .out = out,
                                  .out_offsets = std::span(&offset, 1)}));
        DKV_TRY(backend_->synchronize());
        DKV_TRY(sink(out, first));
    }
    return {};
}

}  // namespace dkv
