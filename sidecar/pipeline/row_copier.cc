#include "sidecar/pipeline/row_copier.h"

#include <utility>

namespace dkv {

Result<void> RowCopier::copy(std::vector<std::int32_t> rows,
                             std::span<std::uint32_t const> lengths,
                             RowsMove const& keys,
                             RowsMove const& values,
                             std::span<std::byte> out) {
    rows_ = std::move(rows);
    if (rows_.size() > ids_.elements().size())
        ids_ = DKV_TRY(BackendArray<std::int32_t>::create(*backend_, rows_.size()));
    auto const ids = ids_.elements().first(rows_.size());
    DKV_TRY(backend_->upload(std::as_bytes(std::span(rows_)), std::as_writable_bytes(ids)));
    for (RowsMove const* move : {&keys, &values})
        DKV_TRY(backend_->gather({.source = move->source,
                                  .ids = ids,
                                  .lengths = lengths,
                                  .out = out,
                                  .out_offsets = move->out_offsets}));
    return backend_->synchronize();
}

}  // namespace dkv
