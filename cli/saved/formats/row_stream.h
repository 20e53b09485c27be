// A layer's chosen rows, head after head, a few megabytes at a time.
#pragma once

#include <functional>

#include "cli/saved/formats/write_cache.h"
#include "kernels/backend.h"

namespace dkv {

/// Which rows of one head.
struct HeadRows {
    std::uint32_t count = 0;
    bool all = false;
    std::span<std::int32_t const> ids;  ///< [count] unless all.
    std::span<std::int32_t const> at;   ///< Positions of the source's rows; empty: 0, 1, 2 …

    std::int32_t position(std::uint32_t row) const {
        auto const source = all ? row : static_cast<std::uint32_t>(ids[row]);
        return at.empty() ? static_cast<std::int32_t>(source) : at[source];
    }
};

/// The rows that `rows` asks of each head. `lengths` [kv_heads] are what the file's header says.
/// Views of `rows`, which outlives them.
///
/// Errors: InvalidArgument, naming the head, when they are not as many, or one is not in the
/// source.
Result<std::vector<HeadRows>> rows_of_heads(RowsToWrite const& rows,
                                            std::span<std::uint32_t const> lengths,
                                            std::uint32_t layer);

class RowStream {
public:
    /// Rows one after another; `first` is the number of the first of them in its head. Read within
    /// the call only.
    using Sink = std::function<Result<void>(std::span<std::byte const> rows, std::uint32_t first)>;

    static Result<RowStream> create(Backend& backend);

    /// `head`: [1, tokens, head_dim]. What lies as it is to be written is not copied.
    /// Errors: those of the backend and of `sink`.
    Result<void> send(RowsView const& head, HeadRows const& rows, Sink const& sink);

private:
    RowStream(Backend& backend, std::unique_ptr<BackendBuffer> buffer)
        : backend_(&backend), buffer_(std::move(buffer)) {}

    Backend* backend_;
    std::unique_ptr<BackendBuffer> buffer_;
    std::vector<std::int32_t> ids_;
};

}  // namespace dkv
