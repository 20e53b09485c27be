#include "protocol/container/quantised_rows.h"

#include <bit>
#include <cmath>

#include <fmt/format.h>

#include "protocol/base/elements.h"

namespace dkv {
namespace {

constexpr std::int32_t kQ8_0 = 8;
constexpr std::int32_t kQ4_0 = 2;
constexpr std::uint64_t kDimsMax = 1U << 20U;  // Beyond any model.

}  // namespace

Result<QuantisedRows> quantised_rows(unsigned bits, std::uint32_t head_dim) {
    if (bits != 8 && bits != 4) return invalid(fmt::format("bits is {}, not 8 or 4", bits));
    auto const* const type = ggml_type(bits == 8 ? kQ8_0 : kQ4_0);
    if (head_dim == 0 || head_dim % type->block_elements != 0)
        return unsupported(
            fmt::format("a head has {} dims, and rows of {} bits are blocks of {}: "
                        "leave --bits out",
                        head_dim, bits, type->block_elements));
    return QuantisedRows{.type = type,
                         .rotation = 1U << static_cast<unsigned>(std::countr_zero(head_dim)),
                         .head_dim = head_dim};
}

Result<QuantisedRows> quantised_rows(std::string_view type,
                                     std::uint32_t rotation,
                                     std::uint64_t row_bytes) {
    for (std::int32_t const number : {kQ8_0, kQ4_0}) {
        auto const* const known = ggml_type(number);
        if (type != known->name) continue;
        std::uint64_t const dims = row_bytes / known->block_bytes * known->block_elements;
        if (row_bytes % known->block_bytes != 0 || dims > kDimsMax)
            return corrupt(fmt::format("rows of {} bytes are not blocks of {}, of {} bytes",
                                       row_bytes, type, known->block_bytes));
        if (!std::has_single_bit(rotation) || dims % rotation != 0)
            return corrupt(fmt::format("rows of {} dims are rotated by {}", dims, rotation));
        return QuantisedRows{
            .type = known, .rotation = rotation, .head_dim = static_cast<std::uint32_t>(dims)};
    }
    return unsupported(fmt::format("rows are \"{}\", and this dkv reads q8_0 and q4_0", type));
}

Result<void> QuantisedRows::pack(std::span<std::byte const> rows,
                                 Dtype dtype,
                                 std::vector<std::byte>& out) const {
    std::size_t const element = bytes_of(dtype);
    DKV_ASSERT(rows.size() % (element * head_dim) == 0);
    std::vector<float> row(head_dim);
    for (std::size_t at = 0; at < rows.size();) {
        for (float& number : row) {
            number = load_f32(rows.data() + at, dtype);
            at += element;
        }
        turn_by_hadamard(row, rotation);
        std::size_t const end = out.size();
        out.resize(end + row_bytes());
        if (!quantise(*type, row, out.data() + end))
            return unsupported(fmt::format(
                "a row has an element that is not finite, or too large for {}: leave --bits out",
                type->name));
    }
    return {};
}

bool QuantisedRows::unpack(std::span<std::byte const> packed,
                           Dtype dtype,
                           std::span<std::byte> out) const {
    std::size_t const element = bytes_of(dtype);
    std::vector<float> row(head_dim);
    bool finite = true;
    auto* to = out.data();
    for (std::size_t at = 0; at + row_bytes() <= packed.size(); at += row_bytes()) {
        dequantise(*type, packed.data() + at, row);
        turn_by_hadamard(row, rotation);
        for (float const number : row) {
            store_f32(to, dtype, number);
            finite = finite && std::isfinite(load_f32(to, dtype));
            to += element;
        }
    }
    return finite;
}

}  // namespace dkv
