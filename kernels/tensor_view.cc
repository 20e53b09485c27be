#include "kernels/tensor_view.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

namespace dkv {
namespace {

std::string shape_text(std::initializer_list<std::uint64_t> extents) {
    std::string text = "[";
    for (std::uint64_t const extent : extents) {
        if (text.size() > 1) text += ", ";
        text += std::to_string(extent);
    }
    return text + "]";
}

}  // namespace

RowsView dense_rows(std::byte* data,
                    Dtype dtype,
                    std::uint32_t heads,
                    std::uint32_t tokens,
                    std::uint32_t head_dim) {
    RowsView view;
    view.data = data;
    view.dtype = dtype;
    view.heads = heads;
    view.tokens = tokens;
    view.head_dim = head_dim;
    view.head_stride = std::uint64_t{tokens} * head_dim;
    view.token_stride = head_dim;
    return view;
}

Result<std::uint64_t> extent_bytes(RowsView const& view) {
    if (view.heads == 0 || view.tokens == 0 || view.head_dim == 0) return std::uint64_t{0};
    std::uint64_t last = 0;  // Index of the last element.
    bool wide = false;
    auto const add = [&](std::uint32_t extent, std::uint64_t stride) {
        std::uint64_t distance = 0;
        wide |= __builtin_mul_overflow(std::uint64_t{extent - 1}, stride, &distance);
        wide |= __builtin_add_overflow(last, distance, &last);
    };
    add(view.heads, view.head_stride);
    if (view.paged() && (view.block_count == 0 || view.block_tokens == 0)) return std::uint64_t{0};
    add(view.paged() ? std::min(view.tokens, view.block_tokens) : view.tokens, view.token_stride);
    if (view.paged()) add(view.block_count, view.block_stride);
    add(view.head_dim, view.dim_stride);
    std::uint64_t bytes = 0;
    wide |= __builtin_add_overflow(last, std::uint64_t{1}, &bytes);
    wide |= __builtin_mul_overflow(bytes, std::uint64_t{bytes_of(view.dtype)}, &bytes);
    if (wide)
        return invalid("strides [" + std::to_string(view.head_stride) + ", " +
                       std::to_string(view.token_stride) + ", " + std::to_string(view.dim_stride) +
                       "] of shape " + shape_text({view.heads, view.tokens, view.head_dim}) +
                       (view.paged() ? " in " + std::to_string(view.block_count) + " blocks " +
                                           std::to_string(view.block_stride) + " apart"
                                     : "") +
                       " reach beyond 64 bits");
    return bytes;
}

bool may_overlap(RowsView const& view) noexcept {
    std::array<std::pair<std::uint64_t, std::uint32_t>, 3> dimensions{{
        {view.head_stride, view.heads},
        {view.token_stride, view.tokens},
        {view.dim_stride, view.head_dim},
    }};
    std::ranges::sort(dimensions);
    std::uint64_t inner = 1;  // Elements from the first to the end of the last, so far.
    for (auto const& [stride, extent] : dimensions) {
        if (extent <= 1) continue;
        if (stride < inner) return true;
        inner += stride * (extent - 1);
    }
    return false;
}

Result<void> check_shape(char const* name,
                         RowsView const& view,
                         std::uint32_t heads,
                         std::uint32_t tokens,
                         std::uint32_t head_dim) {
    if (view.heads == heads && view.tokens == tokens && view.head_dim == head_dim) return {};
    return invalid(std::string(name) + " is " +
                   shape_text({view.heads, view.tokens, view.head_dim}) + ", not " +
                   shape_text({heads, tokens, head_dim}));
}

Result<void> check_elements(char const* name,
                            std::size_t elements,
                            std::initializer_list<std::uint64_t> extents) {
    std::uint64_t product = 1;
    bool wide = false;
    for (std::uint64_t const extent : extents)
        wide |= __builtin_mul_overflow(product, extent, &product);
    if (!wide && elements == product) return {};
    return invalid(std::string(name) + " has " + std::to_string(elements) + " elements, not " +
                   shape_text(extents));
}

Result<void> check_memory(char const* name, RowsView const& view) {
    if (!dtype_from_wire(static_cast<std::uint8_t>(view.dtype)))
        return invalid(std::string(name) + " has unknown dtype " +
                       std::to_string(static_cast<unsigned>(view.dtype)));
    if (view.paged() && view.block_tokens == 0)
        return invalid(std::string(name) + " has blocks of 0 tokens");
    auto const bytes = extent_bytes(view);
    if (!bytes) return invalid(std::string(name) + ": " + bytes.error().message);
    if (bytes.value() != 0 && view.data == nullptr)
        return invalid(std::string(name) + " has no data");
    std::uint64_t end = 0;
    if (__builtin_add_overflow(reinterpret_cast<std::uintptr_t>(view.data), bytes.value(), &end))
        return invalid(std::string(name) + " ends beyond the address space");
    return {};
}

Result<void> check_blocks(RowsView const& view) {
    if (!view.paged() || view.block_tokens == 0) return {};  // The latter check_memory() refuses.
    for (std::uint32_t i = 0; i < view.table_size(); ++i) {
        std::int32_t const block = view.blocks[i];
        if (block < 0 || static_cast<std::uint32_t>(block) >= view.block_count)
            return invalid("block " + std::to_string(i) + " of the table is " +
                           std::to_string(block) + ", not in [0, " +
                           std::to_string(view.block_count) + ")");
    }
    return {};
}

Result<void> check_heads(RowsView const& queries, RowsView const& keys) {
    // Strides of 0 can make a small buffer look like anything; what backends allocate for the
    // queries and their statistics must still be a number.
    constexpr std::uint64_t kQueryElementsMax = std::uint64_t{1} << 36U;
    auto const invalid = [](std::string message) {
        return Error{ErrorCode::InvalidArgument, std::move(message)};
    };
    if (keys.heads == 0 || queries.heads == 0 || queries.heads % keys.heads != 0)
        return invalid("q_heads is " + std::to_string(queries.heads) +
                       ", no multiple of kv_heads " + std::to_string(keys.heads));
    if (keys.head_dim == 0) return invalid("head_dim is 0");
    if (queries.paged()) return invalid("queries are paged; only keys and values may be");
    if (queries.dtype != keys.dtype)
        return invalid("queries are " + std::string(name_of(queries.dtype)) + ", keys " +
                       std::string(name_of(keys.dtype)));
    std::uint64_t elements = std::uint64_t{queries.heads} * queries.tokens;
    if (__builtin_mul_overflow(elements, std::uint64_t{queries.head_dim}, &elements) ||
        elements > kQueryElementsMax)
        return invalid("queries have more than " + std::to_string(kQueryElementsMax) + " elements");
    return {};
}

}  // namespace dkv
