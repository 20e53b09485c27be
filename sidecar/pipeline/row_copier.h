#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "sidecar/pipeline/backend_array.h"

namespace dkv {

/// Where K or V rows come from, and where each head's rows go.
struct RowsMove {
    RowsView source;
    std::vector<std::uint64_t> out_offsets;  ///< [heads] bytes from the start of `out`.
};

/// Copies the same rows of K and of V.
class RowCopier {
public:
    explicit RowCopier(Backend& backend) : backend_(&backend) {}

    /// `rows` [Σ lengths] of the source, head after head. The copies are there when this returns.
    Result<void> copy(std::vector<std::int32_t> rows,
                      std::span<std::uint32_t const> lengths,
                      RowsMove const& keys,
                      RowsMove const& values,
                      std::span<std::byte> out);

private:
    Backend* backend_;
    std::vector<std::int32_t> rows_;  // Alive as long as an upload may read it.
    BackendArray<std::int32_t> ids_;  // Grows to the largest layer.
};

}  // namespace dkv
