#include "sidecar/files/llama_layout.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "sidecar/files/byte_cursor.h"
#include "sidecar/files/words.h"

namespace dkv {
namespace {

constexpr std::uint32_t kStreamsMax = 256;  // llama.cpp's own limit of sequences.
constexpr std::uint32_t kArchBytesMax = 256;
constexpr std::uint32_t kPackedTokensVersion = 1;
constexpr std::int32_t kNoToken = -1;
// What a cell has beside its position where a model's positions are 2-D: x, y; later a token, too.
constexpr std::array<std::uint32_t, 2> kCellExtras{12, 8};

struct GgmlType {
    std::int32_t number;
    std::string_view name;
    std::optional<Dtype> dtype;
};
constexpr GgmlType kTypes[] = {
    {0, "f32", Dtype::F32},       {1, "f16", Dtype::F16},      {2, "q4_0", std::nullopt},
    {3, "q4_1", std::nullopt},    {6, "q5_0", std::nullopt},   {7, "q5_1", std::nullopt},
    {8, "q8_0", std::nullopt},    {9, "q8_1", std::nullopt},   {10, "q2_k", std::nullopt},
    {11, "q3_k", std::nullopt},   {12, "q4_k", std::nullopt},  {13, "q5_k", std::nullopt},
    {14, "q6_k", std::nullopt},   {15, "q8_k", std::nullopt},  {20, "iq4_nl", std::nullopt},
    {23, "iq4_xs", std::nullopt}, {30, "bf16", Dtype::Bf16},   {34, "tq1_0", std::nullopt},
    {35, "tq2_0", std::nullopt},  {39, "mxfp4", std::nullopt},
};

/// The body, with cells of some shape.
class BodyParser {
public:
    BodyParser(ByteCursor cursor, LlamaLayout& layout, std::uint32_t cell_extra)
        : cursor_(cursor), layout_(layout), cell_extra_(cell_extra) {}

    Result<void> parse() {
        layout_.streams_offset = cursor_.offset();
        auto const streams = DKV_TRY(cursor_.take<std::uint32_t>("the number of streams"));
        if (streams == 0 || streams > kStreamsMax)
            return corrupt(fmt::format("the number of streams is {}", streams));
        bool found = false;
        for (std::uint32_t stream = 0; stream < streams; ++stream) {
            auto const count_offset = cursor_.offset();
            auto const cells = DKV_TRY(cursor_.take<std::uint32_t>("the number of cells"));
            if (cells == 0) continue;
            if (found) return unsupported("it holds several sequences: save them one by one");
            found = true;
            layout_.count_offset = count_offset;
            DKV_TRY(parse_cells(cells));
            DKV_TRY(parse_data());
            layout_.end_offset = cursor_.offset();
        }
        if (!found) return unsupported("the sequence has no cells");
        return {};
    }

    std::uint64_t left() const noexcept { return cursor_.left(); }
    ByteCursor rest() const noexcept { return cursor_; }
    bool ends_after_keys() const noexcept { return ends_after_keys_; }

private:
    Result<void> parse_cells(std::uint32_t cells) {
        // Every cell has at least a position and a count: no allocation before they can be there.
        if (cells > cursor_.left() / (2 * sizeof(std::uint32_t)))
            return corrupt(fmt::format("the number of cells is {}, but {} bytes are left", cells,
                                       cursor_.left()));
        layout_.positions.clear();
        layout_.positions.reserve(cells);
        std::optional<std::int32_t> first_sequence;
        std::uint32_t first_count = 0;
        for (std::uint32_t cell = 0; cell < cells; ++cell) {
            auto const position = DKV_TRY(cursor_.take<std::int32_t>("a cell's position"));
            auto const sequences = DKV_TRY(cursor_.take<std::uint32_t>("a cell's sequences"));
            if (position < 0 || position == std::numeric_limits<std::int32_t>::max())
                return corrupt(fmt::format("cell {} is at position {}", cell, position));
            // None: older versions, whose cells belong to whoever loads them.
            if (sequences > kStreamsMax || (cell > 0 && (sequences == 0) != (first_count == 0)))
                return corrupt(fmt::format("cell {} belongs to {} sequences", cell, sequences));
            if (sequences > 1)
                return unsupported(fmt::format("cell {} belongs to {} sequences", cell, sequences));
            if (cell == 0) first_count = sequences;
            DKV_TRY(cursor_.take_bytes("a cell's 2-D position", cell_extra_));
            if (sequences == 1) {
                auto const sequence = DKV_TRY(cursor_.take<std::int32_t>("a cell's sequence"));
                if (sequence < 0 || sequence >= static_cast<std::int32_t>(kStreamsMax))
                    return corrupt(fmt::format("cell {} belongs to sequence {}", cell, sequence));
                if (first_sequence.value_or(sequence) != sequence)
                    return unsupported("it holds several sequences: save them one by one");
                first_sequence = sequence;
            }
            layout_.positions.push_back(position);
        }
        layout_.cell_bytes =
            2 * sizeof(std::uint32_t) + cell_extra_ + first_count * sizeof(std::int32_t);
        return {};
    }

    Result<void> parse_data() {
        auto const transposed = DKV_TRY(cursor_.take<std::uint32_t>("the flag for transposed V"));
        if (transposed > 1)
            return corrupt(fmt::format("the flag for transposed V is {}", transposed));
        layout_.transposed = transposed == 1;
        auto const layers = DKV_TRY(cursor_.take<std::uint32_t>("the number of layers"));
        if (layers == 0 || layers > kLayersMax)
            return corrupt(fmt::format("the number of layers is {}", layers));
        layout_.keys.clear();
        layout_.values.clear();
        for (std::uint32_t layer = 0; layer < layers; ++layer)
            layout_.keys.push_back(DKV_TRY(parse_part("K", layer, false)));
        ends_after_keys_ = cursor_.left() == 0;
        for (std::uint32_t layer = 0; layer < layers; ++layer)
            layout_.values.push_back(DKV_TRY(parse_part("V", layer, layout_.transposed)));
        return {};
    }

    /// K or V of one layer; where its elements begin.
    Result<std::uint64_t> parse_part(char const* part, std::uint32_t layer, bool transposed) {
        auto const number = DKV_TRY(cursor_.take<std::int32_t>("the type of a layer"));
        auto const* const type = std::ranges::find(kTypes, number, &GgmlType::number);
        if (type == std::end(kTypes))
            return corrupt(fmt::format("{} of layer {} is of ggml type {}", part, layer, number));
        if (!type->dtype)
            return unsupported(fmt::format(
                "{} of layer {} is quantised ({}): only f32, f16 and bf16 are known here", part,
                layer, type->name));
        std::uint64_t const element_bytes = bytes_of(*type->dtype);
        std::uint64_t row_elements = 0;
        if (transposed) {
            auto const bytes = DKV_TRY(cursor_.take<std::uint32_t>("the element size of a layer"));
            if (bytes != element_bytes)
                return corrupt(fmt::format("{} of layer {} has elements of {} bytes, but is {}",
                                           part, layer, bytes, type->name));
            row_elements = DKV_TRY(cursor_.take<std::uint32_t>("the row elements of a layer"));
        } else {
            auto const bytes = DKV_TRY(cursor_.take<std::uint64_t>("the row size of a layer"));
            if (bytes % element_bytes != 0)
                return corrupt(fmt::format("{} of layer {} has rows of {} bytes, but is {}", part,
                                           layer, bytes, type->name));
            row_elements = bytes / element_bytes;
        }
        std::uint64_t const fitting = cursor_.left() / element_bytes / layout_.positions.size();
        if (row_elements == 0 || row_elements > fitting)
            return corrupt(fmt::format(
                "{} of layer {} has rows of {} elements: {} of them do not fit in {} bytes", part,
                layer, row_elements, layout_.positions.size(), cursor_.left()));
        if (layout_.keys.empty() && layout_.values.empty()) {
            layout_.dtype = *type->dtype;
            layout_.row_elements = row_elements;
        }
        if (layout_.dtype != *type->dtype || layout_.row_elements != row_elements)
            return unsupported(fmt::format("{} of layer {} is {} × {}, but K of layer 0 {} × {}",
                                           part, layer, type->name, row_elements,
                                           name_of(layout_.dtype), layout_.row_elements));
        auto const offset = cursor_.offset();
        DKV_TRY(cursor_.take_bytes("a layer's rows",
                                   layout_.positions.size() * row_elements * element_bytes));
        return offset;
    }

    ByteCursor cursor_;
    LlamaLayout& layout_;
    std::uint32_t cell_extra_;
    bool ends_after_keys_ = false;
};

/// Whether a recurrent state begins here: its cells, a zero flag, layers of f32 or f16 rows.
bool looks_recurrent(ByteCursor cursor) {
    auto const parse = [&]() -> Result<bool> {
        auto const cells = DKV_TRY(cursor.take<std::uint32_t>("cells"));
        if (cells == 0 || cells > kStreamsMax) return false;
        for (std::uint32_t cell = 0; cell < cells; ++cell) {
            if (DKV_TRY(cursor.take<std::int32_t>("position")) < 0) return false;
            auto const sequences = DKV_TRY(cursor.take<std::uint32_t>("sequences"));
            if (sequences > kStreamsMax) return false;
            DKV_TRY(cursor.take_bytes("sequence", sequences * sizeof(std::int32_t)));
        }
        if (DKV_TRY(cursor.take<std::uint32_t>("transposed")) != 0) return false;
        auto const layers = DKV_TRY(cursor.take<std::uint32_t>("layers"));
        if (layers == 0 || layers > kLayersMax) return false;
        if (static_cast<std::uint32_t>(DKV_TRY(cursor.take<std::int32_t>("type"))) > 1)
            return false;
        auto const row_bytes = DKV_TRY(cursor.take<std::uint64_t>("row"));
        return row_bytes > 0 && row_bytes % 2 == 0 && row_bytes <= cursor.left() / cells;
    };
    auto const found = parse();
    return found && found.value();
}

/// What a body that is no plain cache is, where that can be told.
Error refusal(ByteCursor const& body, BodyParser const& parsed, Result<void> const& outcome) {
    LlamaLayout other;
    if (outcome) {  // All is well but for what follows.
        if (BodyParser second(parsed.rest(), other, 0); second.parse() && second.left() == 0)
            return unsupported(
                "it has two caches: layers with a sliding window beside full ones (iSWA)");
        if (looks_recurrent(parsed.rest()))
            return unsupported("the model is a hybrid: recurrent layers beside attention");
        return corrupt(fmt::format("{} bytes are left after the last layer", parsed.left()));
    }
    Error const& error = outcome.error();
    if (error.code != ErrorCode::CorruptData) return error;
    if (parsed.ends_after_keys())
        return unsupported("there are keys, but no values (MLA): nothing to cut per head");
    for (std::uint32_t const extra : kCellExtras)
        if (BodyParser extended(body, other, extra); extended.parse() && extended.left() == 0)
            return unsupported("its cells have 2-D positions (M-RoPE)");
    if (looks_recurrent(body)) return unsupported("the model is recurrent: it has no keys to cut");
    return error;
}

Result<void> check_version(char const* name,
                           std::uint32_t version,
                           std::uint32_t first,
                           std::uint32_t last) {
    if (version >= first && version <= last) return {};
    return unsupported(
        first == last ? fmt::format("{} version {}: only {} is known here", name, version, last)
                      : fmt::format("{} version {}: only {} and {} are known here", name, version,
                                    first, last));
}

/// The words before the body: token ids, or (newer servers) -1, a version, the ids, media.
Result<std::vector<std::int32_t>> parse_tokens(std::span<std::byte const> words) {
    auto const ids = [](std::span<std::byte const> bytes) {
        std::vector<std::int32_t> tokens(bytes.size() / sizeof(std::int32_t));
        std::ranges::copy(bytes, std::as_writable_bytes(std::span(tokens)).begin());
        bool const text =
            std::ranges::all_of(tokens, [](std::int32_t token) { return token >= 0; });
        return text ? tokens : std::vector<std::int32_t>();
    };
    ByteCursor cursor(words);
    if (words.empty() || DKV_TRY(cursor.take<std::int32_t>("the first token")) != kNoToken)
        return ids(words);
    auto const version = DKV_TRY(cursor.take<std::uint32_t>("the version of the token section"));
    DKV_TRY(check_version("token section", version, kPackedTokensVersion, kPackedTokensVersion));
    auto const count = DKV_TRY(cursor.take<std::uint32_t>("the number of tokens"));
    auto const tokens = ids(DKV_TRY(
        cursor.take_bytes("the token section", std::uint64_t{count} * sizeof(std::int32_t))));
    auto const media = DKV_TRY(cursor.take<std::uint32_t>("the number of media"));
    if (media == 0 && cursor.left() >= sizeof(std::int32_t))
        return corrupt(fmt::format("the token section has {} bytes after its end", cursor.left()));
    return tokens;
}

/// Up to the body.
Result<void> parse_head(ByteCursor& cursor, LlamaLayout& layout, bool bare) {
    if (bare) return {};
    auto const magic = DKV_TRY(cursor.take<std::uint32_t>("the magic"));
    if (magic == kLlamaBlobMagic) {
        layout.kind = LlamaKind::Blob;
        DKV_TRY(cursor.take<std::int32_t>("the sequence"));
        return {};
    }
    if (magic != kLlamaSequenceMagic && magic != kLlamaSessionMagic)
        return corrupt(fmt::format("the magic is {:#010x}, none of llama.cpp's", magic));
    layout.kind = magic == kLlamaSessionMagic ? LlamaKind::Session : LlamaKind::Sequence;
    layout.version = DKV_TRY(cursor.take<std::uint32_t>("the version"));
    if (layout.kind == LlamaKind::Session)
        DKV_TRY(check_version("GGSN", layout.version, kLlamaSessionVersion, kLlamaSessionVersion));
    else
        DKV_TRY(check_version("GGSQ", layout.version, 2, kLlamaSequenceVersion));
    auto const words = DKV_TRY(cursor.take<std::uint32_t>("the number of tokens"));
    layout.tokens = DKV_TRY(parse_tokens(DKV_TRY(
        cursor.take_bytes("the token section", std::uint64_t{words} * sizeof(std::int32_t)))));
    if (layout.kind == LlamaKind::Sequence) return {};
    auto const arch_bytes =
        DKV_TRY(cursor.take<std::uint32_t>("the length of the architecture's name"));
    if (arch_bytes > kArchBytesMax)
        return corrupt(fmt::format("the architecture's name has {} bytes", arch_bytes));
    for (std::byte const letter :
         DKV_TRY(cursor.take_bytes("the architecture's name", arch_bytes))) {
        auto const code = std::to_integer<unsigned char>(letter);
        if (code < 0x21 || code > 0x7e) return corrupt("the architecture's name is not text");
        layout.arch += static_cast<char>(code);
    }
    return {};
}

}  // namespace

std::int32_t ggml_type_of(Dtype dtype) noexcept {
    auto const* const found = std::ranges::find(kTypes, std::optional(dtype), &GgmlType::dtype);
    return found->number;
}

Result<LlamaLayout> parse_llama(std::span<std::byte const> file, bool bare) {
    LlamaLayout layout;
    ByteCursor cursor(file);
    DKV_TRY(parse_head(cursor, layout, bare));
    BodyParser body(cursor, layout, 0);
    auto const parsed = body.parse();
    if (!parsed || body.left() > 0) return refusal(cursor, body, parsed);
    return layout;
}

}  // namespace dkv
