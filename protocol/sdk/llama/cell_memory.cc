#include "protocol/sdk/llama/cell_memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <unistd.h>

#include <sys/mman.h>

namespace dkv::llama {
namespace {

constexpr std::string_view kKeyCells = "cache_k_l";
constexpr std::string_view kValueCells = "cache_v_l";
constexpr std::string_view kStores = "SET_ROWS";

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

/// `runs` runs of `cells` elements in a buffer, of which the sequence's begin at `first`: rows are
/// one run, a transposed V has one for each dimension of each KV head.
struct Runs {
    std::byte* data = nullptr;
    std::uint64_t runs = 1;
    std::uint64_t cells = 0;
    std::uint64_t first = 0;
    std::uint64_t element_bytes = 0;

    std::uint64_t bytes() const noexcept { return cells * element_bytes; }

    bool equal(std::byte const* stored, std::uint64_t kept) const {
        if (first + kept > cells) return false;
        std::uint64_t const bytes_kept = kept * element_bytes;
        for (std::uint64_t run = 0; run < runs; ++run)
            if (std::memcmp(data + run * bytes() + first * element_bytes, stored + run * bytes_kept,
                            bytes_kept) != 0)
                return false;
        return true;
    }
};

/// Of whole pages between two addresses: the bytes that were resident, and are no more.
std::uint64_t give_back_pages(std::byte* begin, std::byte* end) {
    auto const page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    std::uintptr_t const from = (reinterpret_cast<std::uintptr_t>(begin) + page - 1) / page * page;
    std::uintptr_t const to = reinterpret_cast<std::uintptr_t>(end) / page * page;
    if (from >= to) return 0;
    auto* const pages = reinterpret_cast<void*>(from);
    std::vector<unsigned char> resident((to - from) / page);
    auto const count = [&]() -> std::uint64_t {
        if (::mincore(pages, to - from, resident.data()) != 0) return 0;
        return static_cast<std::uint64_t>(
            std::ranges::count_if(resident, [](unsigned char at) { return at & 1; }));
    };
    std::uint64_t const before = count();
    if (before == 0 || ::madvise(pages, to - from, MADV_DONTNEED) != 0) return 0;
    return (before - std::min(before, count())) * page;
}

std::uint64_t give_back_free(Runs const& part, std::uint64_t kept) {
    std::uint64_t returned = 0;
    for (std::uint64_t run = 0; run < part.runs; ++run) {
        std::byte* const begin = part.data + run * part.bytes();
        std::byte* const used = begin + part.first * part.element_bytes;
        returned += give_back_pages(begin, used) +
                    give_back_pages(used + kept * part.element_bytes, begin + part.bytes());
    }
    return returned;
}

}  // namespace

void CellMemory::note(ggml_tensor const* tensor) {
    std::string_view const name = library_.ggml_get_name(tensor);
    auto const take = [&](std::string_view prefix, std::vector<Buffer>& buffers) {
        auto const layer = layer_in(name, prefix);
        if (layer && *layer < buffers.size() && library_.ggml_op_desc(tensor) == kStores)
            buffers[*layer] = {static_cast<std::byte*>(library_.ggml_get_data(tensor)),
                               library_.ggml_nbytes(tensor)};
    };
    take(kKeyCells, keys_);
    take(kValueCells, values_);
}

std::uint64_t CellMemory::give_back(OnlySequence const& only) const {
    LlamaLayout const& layout = only.layout;
    std::uint64_t const kept = layout.positions.size();
    auto const memory = own_memory();
    // One part of a buffer for all sequences, or one for each.
    for (std::uint64_t const streams : {std::uint64_t{1}, std::uint64_t{only.sequences_max}}) {
        auto const runs_of = [&](Buffer const& buffer, LlamaRows const& rows,
                                 bool transposed) -> std::optional<Runs> {
            if (buffer.data == nullptr || !holds(memory, buffer.data, buffer.bytes))
                return std::nullopt;
            std::uint64_t const row_bytes = rows.type->bytes(layout.row_elements);
            std::uint64_t const cells = buffer.bytes / row_bytes / streams;
            std::uint64_t const part = streams == 1 ? 0 : only.sequence;
            if (!transposed) return Runs{buffer.data, 1, cells * streams, part * cells, row_bytes};
            return Runs{buffer.data + part * cells * row_bytes, layout.row_elements, cells, 0,
                        row_bytes / layout.row_elements};
        };
        std::vector<Runs> parts;
        auto const add = [&](std::vector<Buffer> const& buffers, LlamaRows const& rows,
                             std::span<std::uint64_t const> offsets, bool transposed) {
            for (std::size_t layer = 0; layer < only.layers.size(); ++layer) {
                auto const part = runs_of(buffers[only.layers[layer]], rows, transposed);
                if (!part || !part->equal(only.state.data() + offsets[layer], kept)) return false;
                parts.push_back(*part);
            }
            return true;
        };
        if (!add(keys_, layout.key_rows, layout.keys, false) ||
            !add(values_, layout.value_rows, layout.values, layout.transposed))
            continue;
        std::uint64_t returned = 0;
        for (Runs const& part : parts)
            returned += give_back_free(part, kept);
        return returned;
    }
    return 0;
}

}  // namespace dkv::llama
