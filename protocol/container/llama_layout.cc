#include "protocol/container/llama_layout.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <string_view>

#include <fmt/format.h>

#include "protocol/container/byte_cursor.h"

namespace dkv {
namespace {

constexpr std::uint32_t kStreamsMax = 256;       // llama.cpp's own limit of sequences.
constexpr std::uint32_t kLlamaLayersMax = 1024;  // Beyond any model.
constexpr std::uint32_t kArchBytesMax = 256;
constexpr std::uint32_t kRotationMax = 1024;  // No head has more dims.
constexpr std::uint32_t kPackedTokensVersion = 1;
constexpr std::int32_t kNoToken = -1;
// What a cell has beside its position where a model's positions are 2-D: x, y; later a token, too.
constexpr std::array<std::uint32_t, 2> kCellExtras{12, 8};

constexpr std::uint32_t kCheckpointVersion = 1;
constexpr std::uint32_t kCheckpointBlobs = 3;  // Of the model, its draft, and what speculates.

/// The body, with cells of some shape.
class BodyParser {
public:
    BodyParser(ByteCursor cursor,
               LlamaLayout& layout,
               bool says_rotation,
               std::uint32_t cell_extra = 0)
        : cursor_(cursor), layout_(layout), cell_extra_(cell_extra) {
        layout_.says_rotation = says_rotation;
    }

    Result<void> parse() {
        layout_.streams_offset = cursor_.offset();
        layout_.key_rows = layout_.value_rows = {};
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
    bool says_rotation() const noexcept { return layout_.says_rotation; }

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
            // None: older versions, whose cells take the sequence that loads them.
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
        if (layers == 0 || layers > kLlamaLayersMax)
            return corrupt(fmt::format("the number of layers is {}", layers));
        if (layout_.says_rotation) {
            layout_.key_rows.rotation = DKV_TRY(parse_rotation("the rotation of K"));
            layout_.value_rows.rotation = DKV_TRY(parse_rotation("the rotation of V"));
        }
        layout_.keys.clear();
        layout_.values.clear();
        for (std::uint32_t layer = 0; layer < layers; ++layer)
            layout_.keys.push_back(DKV_TRY(parse_part({"K", layer, false}, layout_.key_rows)));
        ends_after_keys_ = cursor_.left() == 0;
        for (std::uint32_t layer = 0; layer < layers; ++layer)
            layout_.values.push_back(
                DKV_TRY(parse_part({"V", layer, layout_.transposed}, layout_.value_rows)));
        return {};
    }

    Result<std::uint32_t> parse_rotation(char const* name) {
        auto const order = DKV_TRY(cursor_.take<std::uint32_t>(name));
        if (order == 0 || (order > 1 && order <= kRotationMax && std::has_single_bit(order)))
            return order;
        return corrupt(fmt::format("{} is of order {}, not of a power of two", name, order));
    }

    struct Part {
        char const* name;
        std::uint32_t layer;
        bool transposed;
    };

    Result<GgmlType const*> parse_type(Part const& part) {
        auto const number = DKV_TRY(cursor_.take<std::int32_t>("the type of a layer"));
        auto const* const type = ggml_type(number);
        if (type == nullptr)
            return corrupt(
                fmt::format("{} of layer {} is of ggml type {}", part.name, part.layer, number));
        if (!type->is_readable())
            return unsupported(
                fmt::format("{} of layer {} is {}: llama.cpp's types for a cache "
                            "are f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 and "
                            "iq4_nl",
                            part.name, part.layer, type->name));
        if (part.transposed && !type->dtype)
            return unsupported(fmt::format("{} of layer {} is quantised ({}) and transposed",
                                           part.name, part.layer, type->name));
        return type;
    }

    Result<std::uint64_t> parse_row_elements(Part const& part, GgmlType const& type) {
        if (part.transposed) {
            auto const bytes = DKV_TRY(cursor_.take<std::uint32_t>("the element size of a layer"));
            if (bytes != type.block_bytes)
                return corrupt(fmt::format("{} of layer {} has elements of {} bytes, but is {}",
                                           part.name, part.layer, bytes, type.name));
            return DKV_TRY(cursor_.take<std::uint32_t>("the row elements of a layer"));
        }
        auto const bytes = DKV_TRY(cursor_.take<std::uint64_t>("the row size of a layer"));
        if (bytes % type.block_bytes != 0)
            return corrupt(fmt::format("{} of layer {} has rows of {} bytes, but is {}", part.name,
                                       part.layer, bytes, type.name));
        return bytes / type.block_bytes * type.block_elements;
    }

    /// K or V of one layer; where its elements begin. All layers are as the first.
    Result<std::uint64_t> parse_part(Part const& part, LlamaRows& rows) {
        auto const* const type = DKV_TRY(parse_type(part));
        auto const elements = DKV_TRY(parse_row_elements(part, *type));
        std::uint64_t const cells = layout_.positions.size();
        std::uint64_t const fitting =
            cursor_.left() / cells / type->block_bytes * type->block_elements;
        if (elements == 0 || elements > fitting)
            return corrupt(fmt::format(
                "{} of layer {} has rows of {} elements: {} of them do not fit in {} bytes",
                part.name, part.layer, elements, cells, cursor_.left()));
        if (layout_.keys.empty() && layout_.values.empty()) layout_.row_elements = elements;
        if (rows.type == nullptr) rows.type = type;
        if (rows.type != type || layout_.row_elements != elements)
            return unsupported(fmt::format("{} of layer {} is {} × {}, but {} of layer 0 {} × {}",
                                           part.name, part.layer, type->name, elements,
                                           rows.type == type ? "K" : part.name, rows.type->name,
                                           layout_.row_elements));
        if (rows.rotation != 0 && elements % rows.rotation != 0)
            return corrupt(fmt::format("{} of layer {} has rows of {} elements, rotated by {}",
                                       part.name, part.layer, elements, rows.rotation));
        auto const offset = cursor_.offset();
        DKV_TRY(cursor_.take_bytes("a layer's rows", cells * type->bytes(elements)));
        return offset;
    }

    ByteCursor cursor_;
    LlamaLayout& layout_;
    std::uint32_t cell_extra_;
    bool ends_after_keys_ = false;
};

Result<void> check_version(char const* name,
                           std::uint32_t version,
                           std::uint32_t first,
                           std::uint32_t last) {
    if (version >= first && version <= last) return {};
    return unsupported(
        first == last ? fmt::format("{} version {}: only {} is known here", name, version, last)
                      : fmt::format("{} version {}: only {} to {} are known here", name, version,
                                    first, last));
}

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
        if (layers == 0 || layers > kLlamaLayersMax) return false;
        if (static_cast<std::uint32_t>(DKV_TRY(cursor.take<std::int32_t>("type"))) > 1)
            return false;
        auto const row_bytes = DKV_TRY(cursor.take<std::uint64_t>("row"));
        return row_bytes > 0 && row_bytes % 2 == 0 && row_bytes <= cursor.left() / cells;
    };
    auto const found = parse();
    return found && found.value();
}

/// Behind the last body there is nothing, or what a server appends: it does for iSWA by itself.
bool ends_or_has_checkpoints(ByteCursor at) {
    if (at.left() == 0) return true;
    auto const magic = at.take<std::uint32_t>("a magic");
    return magic && magic.value() == kLlamaCheckpointMagic;
}

/// Takes the sliding layers' body, if that is what follows.
void take_sliding(ByteCursor& cursor, LlamaLayout& layout) {
    layout.sliding = {};
    if (ends_or_has_checkpoints(cursor)) return;
    LlamaLayout found;
    BodyParser body(cursor, found, layout.says_rotation);
    if (!body.parse() || !ends_or_has_checkpoints(body.rest()) ||
        std::ranges::max(found.positions) != std::ranges::max(layout.positions))
        return;
    layout.sliding = {.layers = static_cast<std::uint32_t>(found.keys.size()),
                      .cells = static_cast<std::uint32_t>(found.positions.size()),
                      .bytes = cursor.left() - body.left()};
    cursor = body.rest();
}

/// Names a body that is not a plain cache, where it can be recognised.
Error refusal(ByteCursor const& body, BodyParser const& parsed, Result<void> const& outcome) {
    LlamaLayout other;
    bool const says_rotation = parsed.says_rotation();
    if (outcome) {  // All is well but for what follows.
        if (looks_recurrent(parsed.rest()))
            return unsupported("the model is a hybrid: recurrent layers beside attention");
        return unsupported(
            fmt::format("{} bytes follow the last layer, and they are not "
                        "checkpoints (SCKP): what they are is not known here",
                        parsed.left()));
    }
    Error const& error = outcome.error();
    if (error.code != ErrorCode::CorruptData) return error;
    if (parsed.ends_after_keys())
        return unsupported("there are keys, but no values (MLA): nothing to cut per head");
    for (std::uint32_t const extra : kCellExtras)
        if (BodyParser extended(body, other, says_rotation, extra);
            extended.parse() && extended.left() == 0)
            return unsupported("its cells have 2-D positions (M-RoPE)");
    if (looks_recurrent(body)) return unsupported("the model is recurrent: it has no keys to cut");
    return error;
}

/// Whether a state is of `layers` layers and nothing else.
bool is_of_layers(std::span<std::byte const> state, std::uint32_t layers, bool says_rotation) {
    ByteCursor cursor(state);
    auto const magic = cursor.take<std::uint32_t>("the magic");
    if (!magic || magic.value() != kLlamaBlobMagic || !cursor.take<std::int32_t>("the sequence"))
        return false;
    LlamaLayout found;
    BodyParser body(cursor, found, says_rotation);
    return body.parse() && body.left() == 0 && found.keys.size() == layers;
}

/// What a server appended, if it did.
Result<LlamaCheckpoints> parse_checkpoints(ByteCursor& cursor, LlamaLayout const& layout) {
    LlamaCheckpoints found;
    ByteCursor ahead = cursor;
    if (auto const magic = ahead.take<std::uint32_t>("a magic");
        !magic || magic.value() != kLlamaCheckpointMagic)
        return found;
    found.bytes = cursor.left();
    found.version = DKV_TRY(ahead.take<std::uint32_t>("the version of the checkpoints"));
    DKV_TRY(
        check_version("SCKP (checkpoints)", found.version, kCheckpointVersion, kCheckpointVersion));
    found.count = DKV_TRY(ahead.take<std::uint32_t>("the number of checkpoints"));
    for (std::uint32_t checkpoint = 0; checkpoint < found.count; ++checkpoint) {
        auto const begin = ahead.offset();
        auto const tokens = DKV_TRY(ahead.take<std::int64_t>("a checkpoint's tokens"));
        DKV_TRY(ahead.take<std::int32_t>("a checkpoint's first position"));
        DKV_TRY(ahead.take<std::int32_t>("a checkpoint's last position"));
        bool sliding = layout.sliding.layers > 0;
        for (std::uint32_t blob = 0; blob < kCheckpointBlobs; ++blob) {
            auto const bytes = DKV_TRY(ahead.take<std::uint64_t>("the size of a checkpoint"));
            auto const state = DKV_TRY(ahead.take_bytes("a checkpoint", bytes));
            sliding = sliding &&
                      (blob > 0 ? bytes == 0
                                : is_of_layers(state, layout.sliding.layers, layout.says_rotation));
        }
        if (!sliding || tokens <= found.newest_tokens) continue;
        found.newest_tokens = tokens;
        found.newest_offset = begin;
        found.newest_bytes = ahead.offset() - begin;
    }
    if (ahead.left() > 0)
        return unsupported(
            fmt::format("{} bytes follow the last of {} checkpoints, and what they "
                        "are is not known here",
                        ahead.left(), found.count));
    cursor = ahead;
    return found;
}

/// The words before the body: token ids, or (newer servers) -1, a version, the ids, media.
Result<void> parse_tokens(std::span<std::byte const> words, LlamaLayout& layout) {
    auto const ids = [](std::span<std::byte const> bytes) {
        std::vector<std::int32_t> tokens(bytes.size() / sizeof(std::int32_t));
        std::ranges::copy(bytes, std::as_writable_bytes(std::span(tokens)).begin());
        bool const text =
            std::ranges::all_of(tokens, [](std::int32_t token) { return token >= 0; });
        return text ? tokens : std::vector<std::int32_t>();
    };
    ByteCursor cursor(words);
    if (words.empty() || DKV_TRY(cursor.take<std::int32_t>("the first token")) != kNoToken) {
        layout.tokens = ids(words);
        return {};
    }
    auto const version = DKV_TRY(cursor.take<std::uint32_t>("the version of the token section"));
    DKV_TRY(check_version("token section", version, kPackedTokensVersion, kPackedTokensVersion));
    auto const count = DKV_TRY(cursor.take<std::uint32_t>("the number of tokens"));
    layout.tokens = ids(DKV_TRY(
        cursor.take_bytes("the token section", std::uint64_t{count} * sizeof(std::int32_t))));
    layout.media = DKV_TRY(cursor.take<std::uint32_t>("the number of media"));
    if (layout.media == 0 && cursor.left() >= sizeof(std::int32_t))
        return corrupt(fmt::format("the token section has {} bytes after its end", cursor.left()));
    // Each has at least a place among the tokens.
    if (layout.media > cursor.left() / sizeof(std::uint32_t))
        return corrupt(fmt::format("the token section has {} media, and {} bytes for them",
                                   layout.media, cursor.left()));
    return {};
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
        DKV_TRY(check_version("GGSN", layout.version, 10, kLlamaSessionVersion));
    else
        DKV_TRY(check_version("GGSQ", layout.version, 2, kLlamaSequenceVersion));
    auto const words = DKV_TRY(cursor.take<std::uint32_t>("the number of tokens"));
    DKV_TRY(parse_tokens(DKV_TRY(cursor.take_bytes("the token section",
                                                   std::uint64_t{words} * sizeof(std::int32_t))),
                         layout));
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

Result<LlamaLayout> parse_llama(std::span<std::byte const> file, bool bare) {
    LlamaLayout layout;
    ByteCursor cursor(file);
    DKV_TRY(parse_head(cursor, layout, bare));
    std::vector<bool> tries{layout.kind == LlamaKind::Sequence
                                ? layout.version >= kLlamaSequenceVersion
                                : layout.version >= kLlamaSessionVersion};
    // A state has no version: one without the rotations cannot be read as one with them.
    if (layout.kind == LlamaKind::Blob || layout.kind == LlamaKind::Bare) tries = {false, true};
    std::optional<Error> first;
    std::uint64_t least_left = 0;
    for (bool const says_rotation : tries) {
        BodyParser body(cursor, layout, says_rotation);
        auto const parsed = body.parse();
        ByteCursor rest = body.rest();
        if (parsed) take_sliding(rest, layout);
        if (parsed && layout.kind == LlamaKind::Sequence)
            layout.checkpoints = DKV_TRY(parse_checkpoints(rest, layout));
        if (parsed && rest.left() == 0) return layout;
        auto error = refusal(cursor, body, parsed);
        if (first && body.left() >= least_left) continue;
        first = std::move(error);
        least_left = body.left();
    }
    return *std::move(first);
}

}  // namespace dkv
