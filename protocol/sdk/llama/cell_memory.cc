#include "protocol/sdk/llama/cell_memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <unistd.h>

#include <sys/mman.h>

#include "protocol/base/resident.h"

namespace dkv::llama {
namespace {

constexpr std::string_view kKeyCells = "cache_k_l";
constexpr std::string_view kValueCells = "cache_v_l";
constexpr std::string_view kStoreOp = "SET_ROWS";

struct Range {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
};

/// Private memory of no file that can be read and written: what may be given back and is zero then.
std::vector<Range> own_memory() {
    std::vector<Range> found;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        Range range;
        char access[5] = {};
        unsigned long inode = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx %4s %*s %*s %lu", &range.begin, &range.end, access,
                        &inode) != 4 ||
            std::string_view(access) != "rw-p" || inode != 0)
            continue;
        if (!found.empty() && found.back().end == range.begin)
            found.back().end = range.end;
        else
            found.push_back(range);
    }
    return found;
}

bool holds(std::span<Range const> memory, std::byte const* data, std::uint64_t bytes) {
    auto const begin = reinterpret_cast<std::uintptr_t>(data);
    return std::ranges::any_of(memory, [&](Range const& range) {
        return range.begin <= begin && bytes <= range.end - begin && begin < range.end;
    });
}

/// A sequence's part of one layer's K or V: rows, or, of a transposed V, a row of cells for each
/// dimension.
struct StreamPart {
    std::byte* data = nullptr;
    std::uint64_t rows = 1;
    std::uint64_t cells = 0;  ///< Of each row.
    std::uint64_t cell_bytes = 0;

    std::byte* row(std::uint64_t index) const noexcept { return data + index * cells * cell_bytes; }

    /// Whether each row begins with that many cells of `stored`.
    bool begins_with(std::byte const* stored, std::uint64_t count) const {
        if (count > cells) return false;
        std::uint64_t const bytes = count * cell_bytes;
        for (std::uint64_t index = 0; index < rows; ++index)
            if (std::memcmp(row(index), stored + index * bytes, bytes) != 0) return false;
        return true;
    }
};

/// Of whole pages between two addresses: the bytes that were resident, and are no more.
std::uint64_t give_back_pages(std::uintptr_t begin, std::uintptr_t end) {
    if (begin >= end) return 0;
    auto* const pages = reinterpret_cast<std::byte*>(begin);
    std::uint64_t const before = resident_bytes(pages, end - begin);
    if (before == 0 || ::madvise(pages, end - begin, MADV_DONTNEED) != 0) return 0;
    return before - std::min(before, resident_bytes(pages, end - begin));
}

void give_back_behind(StreamPart const& part,
                      std::uint64_t kept,
                      std::uint64_t cells_before,
                      Returned& returned) {
    auto const page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    auto const next_page = [page](std::byte* at) {
        return (reinterpret_cast<std::uintptr_t>(at) + page - 1) / page * page;
    };
    for (std::uint64_t index = 0; index < part.rows; ++index) {
        std::byte* const row = part.row(index);
        std::uintptr_t const begin = next_page(row + kept * part.cell_bytes);
        std::uintptr_t const end =
            reinterpret_cast<std::uintptr_t>(part.row(index + 1)) / page * page;
        std::uintptr_t const had_token =
            std::min(end, next_page(row + cells_before * part.cell_bytes));
        std::uint64_t const bytes = give_back_pages(begin, had_token);
        returned.bytes_before += bytes;
        returned.bytes += bytes + give_back_pages(std::max(begin, had_token), end);
    }
}

std::uint32_t number_at(std::span<std::byte const> state, std::uint64_t offset) {
    std::uint32_t number = 0;
    std::memcpy(&number, state.data() + offset, sizeof number);
    return number;
}

}  // namespace

void CellMemory::note(ggml_tensor const* tensor) {
    std::string_view const name = library_.ggml_get_name(tensor);
    auto const take = [&](std::string_view prefix, std::vector<Buffer>& buffers) {
        auto const layer = layer_in(name, prefix);
        if (layer && *layer < buffers.size() && library_.ggml_op_desc(tensor) == kStoreOp)
            buffers[*layer] = {static_cast<std::byte*>(library_.ggml_get_data(tensor)),
                               library_.ggml_nbytes(tensor)};
    };
    take(kKeyCells, keys_);
    take(kValueCells, values_);
}

Returned CellMemory::give_back(StoredSequence const& stored) const {
    LlamaLayout const& layout = stored.layout;
    std::uint64_t const kept = layout.positions.size();
    // A buffer has a part for each stream. The state says how many, and has no cells of those
    // before the sequence's.
    std::uint64_t const streams = number_at(stored.state, layout.streams_offset);
    std::uint64_t const stream =
        (layout.count_offset - layout.streams_offset) / sizeof(std::uint32_t) - 1;
    auto const memory = own_memory();
    std::vector<StreamPart> parts;
    auto const add = [&](std::vector<Buffer> const& buffers, LlamaRows const& rows,
                         std::span<std::uint64_t const> offsets, bool transposed) {
        std::uint64_t const row_bytes = rows.type->bytes(layout.row_elements);
        for (std::size_t layer = 0; layer < stored.layers.size(); ++layer) {
            Buffer const& buffer = buffers[stored.layers[layer]];
            if (buffer.data == nullptr || !holds(memory, buffer.data, buffer.bytes)) return false;
            std::uint64_t const cells = buffer.bytes / row_bytes / streams;
            std::uint64_t const rows_in_part = transposed ? layout.row_elements : 1;
            parts.push_back({buffer.data + stream * cells * row_bytes, rows_in_part, cells,
                             row_bytes / rows_in_part});
            if (!parts.back().begins_with(stored.state.data() + offsets[layer], kept)) return false;
        }
        return true;
    };
    Returned returned;
    if (add(keys_, layout.key_rows, layout.keys, false) &&
        add(values_, layout.value_rows, layout.values, layout.transposed))
        for (StreamPart const& part : parts)
            give_back_behind(part, kept, stored.cells_before, returned);
    return returned;
}

}  // namespace dkv::llama
