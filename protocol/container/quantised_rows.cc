#include "protocol/container/quantised_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>

#include <fmt/format.h>

#include "protocol/base/elements.h"

namespace dkv {
namespace {

constexpr std::int32_t kEightBits = 8;
constexpr std::int32_t kFourBits = 2;
constexpr std::uint64_t kDimsMax = 1U << 20U;  // Beyond any model.

}  // namespace

std::string_view name_of(RowBits bits) noexcept {
    switch (bits) {
        case RowBits::Eight: return "8";
        case RowBits::Four: return "4";
        case RowBits::Mixed: return "mixed";
        case RowBits::Own: break;
    }
    return "";
}

std::string QuantisedRows::name() const {
    return refined ? fmt::format("{0}+{0}", type->name) : std::string(type->name);
}

Result<QuantisedRows> quantised_rows(RowBits bits, std::uint32_t head_dim) {
    DKV_ASSERT(bits != RowBits::Own);
    auto const* const type = ggml_type(bits == RowBits::Eight ? kEightBits : kFourBits);
    if (head_dim == 0 || head_dim % type->block_elements != 0)
        return unsupported(
            fmt::format("a head has {} dims, and rows of {} bits are blocks of {}: "
                        "leave --bits out",
                        head_dim, name_of(bits), type->block_elements));
    return QuantisedRows{.type = type,
                         .refined = bits == RowBits::Mixed,
                         .rotation = 1U << static_cast<unsigned>(std::countr_zero(head_dim)),
                         .head_dim = head_dim};
}

Result<QuantisedRows> quantised_rows(std::string_view type,
                                     std::uint32_t rotation,
                                     std::uint64_t row_bytes) {
    for (auto const bits : {RowBits::Eight, RowBits::Four, RowBits::Mixed}) {
        auto const* const known = ggml_type(bits == RowBits::Eight ? kEightBits : kFourBits);
        QuantisedRows rows{.type = known, .refined = bits == RowBits::Mixed, .rotation = rotation};
        if (type != rows.name()) continue;
        std::uint64_t const dims = row_bytes / known->block_bytes * known->block_elements;
        if (row_bytes % known->block_bytes != 0 || dims > kDimsMax)
            return corrupt(fmt::format("rows of {} bytes are not blocks of {}, of {} bytes",
                                       row_bytes, type, known->block_bytes));
        if (!std::has_single_bit(rotation) || dims % rotation != 0)
            return corrupt(fmt::format("rows of {} dims are rotated by {}", dims, rotation));
        rows.head_dim = static_cast<std::uint32_t>(dims);
        return rows;
    }
    return unsupported(
        fmt::format("rows are \"{}\", and this dkv reads q8_0, q4_0 and q4_0+q4_0", type));
}

Result<void> QuantisedRows::append_row(std::span<float const> turned,
                                       std::vector<std::byte>& out) const {
    std::size_t const end = out.size();
    out.resize(end + row_bytes());
    if (quantise(*type, turned, out.data() + end)) return {};
    return unsupported(fmt::format(
        "a row has an element that is not finite, or too large for {}: leave --bits out",
        type->name));
}

template <class Row>
Result<void> QuantisedRows::each_row(std::span<std::byte const> rows,
                                     Dtype dtype,
                                     Row const& take) const {
    std::size_t const element = bytes_of(dtype);
    DKV_ASSERT(rows.size() % (element * head_dim) == 0);
    std::vector<float> row(head_dim);
    for (std::size_t at = 0; at < rows.size();) {
        for (float& number : row) {
            number = load_f32(rows.data() + at, dtype);
            at += element;
        }
        turn_by_hadamard(row, rotation);
        DKV_TRY(take(row));
    }
    return {};
}

Result<void> QuantisedRows::pack(std::span<std::byte const> rows,
                                 Dtype dtype,
                                 std::vector<std::byte>& out) const {
    return each_row(rows, dtype,
                    [&](std::vector<float> const& row) { return append_row(row, out); });
}

Result<void> QuantisedRows::pack_rest(std::span<std::byte const> rows,
                                      Dtype dtype,
                                      std::vector<std::byte>& out) const {
    std::vector<std::byte> packed;
    std::vector<float> rest(head_dim);
    return each_row(rows, dtype, [&](std::vector<float> const& row) -> Result<void> {
        packed.clear();
        DKV_TRY(append_row(row, packed));
        dequantise(*type, packed.data(), rest);
        for (std::size_t at = 0; at < rest.size(); ++at)
            rest[at] = row[at] - rest[at];
        return append_row(rest, out);
    });
}

bool QuantisedRows::unpack(std::span<std::byte const> packed,
                           std::span<std::byte const> rest,
                           Dtype dtype,
                           std::span<std::byte> out) const {
    DKV_ASSERT(rest.empty() || rest.size() == packed.size());
    std::size_t const element = bytes_of(dtype);
    std::vector<float> row(head_dim);
    std::vector<float> more(head_dim);
    bool finite = true;
    auto* to = out.data();
    for (std::size_t at = 0; at + row_bytes() <= packed.size(); at += row_bytes()) {
        dequantise(*type, packed.data() + at, row);
        if (!rest.empty()) {
            dequantise(*type, rest.data() + at, more);
            std::ranges::transform(row, more, row.begin(), std::plus());
        }
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
