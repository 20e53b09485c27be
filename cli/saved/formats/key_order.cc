#include "cli/saved/formats/key_order.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include <fmt/format.h>

namespace dkv {

std::string_view name_of(KeyOrder order) noexcept {
    return order == KeyOrder::Pairs ? "pairs" : "halves";
}

std::optional<KeyOrder> key_order(std::string_view name) noexcept {
    for (KeyOrder const order : {KeyOrder::Halves, KeyOrder::Pairs})
        if (name == name_of(order)) return order;
    return std::nullopt;
}

Result<KeyReorder> KeyReorder::create(RopeFacts const& rope,
                                      KeyOrder to,
                                      std::uint32_t head_dim,
                                      Dtype dtype) {
    KeyReorder reorder;
    if (rope.interleaved == (to == KeyOrder::Pairs)) return reorder;
    std::uint32_t const dims = rope.dims == 0 ? head_dim : rope.dims;
    if (dims % 2 != 0 || dims > head_dim)
        return Error{ErrorCode::InvalidArgument,
                     fmt::format("rope over {} dims, of rows of {}", dims, head_dim)};
    reorder.from_.resize(head_dim);
    std::iota(reorder.from_.begin(), reorder.from_.end(), 0U);
    for (std::uint32_t pair = 0; pair < dims / 2; ++pair)
        for (std::uint32_t side : {0U, 1U}) {
            std::uint32_t const in_pairs = 2 * pair + side;
            std::uint32_t const in_halves = pair + side * dims / 2;
            if (to == KeyOrder::Pairs)
                reorder.from_[in_pairs] = in_halves;
            else
                reorder.from_[in_halves] = in_pairs;
        }
    reorder.element_ = bytes_of(dtype);
    reorder.row_.resize(head_dim * reorder.element_);
    return reorder;
}

void KeyReorder::apply(std::span<std::byte> rows) {
    if (!is_needed()) return;
    for (; !rows.empty(); rows = rows.subspan(row_.size())) {
        std::copy_n(rows.begin(), row_.size(), row_.begin());
        for (std::size_t dim = 0; dim < from_.size(); ++dim)
            std::memcpy(&rows[dim * element_], &row_[from_[dim] * element_], element_);
    }
}

}  // namespace dkv
