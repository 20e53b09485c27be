// llama.cpp's saved sequences made by hand, for tests: one that is right, and every way to spoil
// it.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

namespace dkv::test {

/// f16 rows whose element is its own number, unless told otherwise.
struct LlamaSample {
    enum Kind { Slot, PackedSlot, Session, Blob, Bare } kind = Slot;
    std::uint32_t version = 3;
    std::vector<std::int32_t> positions{0, 1, 2, 3, 4};
    std::uint32_t layers = 2;
    std::uint32_t row_elements = 8;
    bool transposed = false;
    std::int32_t type = 1;
    std::uint32_t element_bytes = 2;
    std::uint32_t empty_streams_before = 0;
    std::uint32_t empty_streams_after = 0;
    std::uint32_t cell_sequences = 1;
    std::uint32_t cell_extra_bytes = 0;
    bool values = true;
    /// Sessions and states; a slot's version says it.
    bool says_rotation = false;
    std::uint32_t key_rotation = 0;
    std::uint32_t value_rotation = 0;
    std::vector<std::int32_t> media_words = {};  ///< Behind a packed section's tokens.
    std::string appended = {};

    bool has_rotation() const {
        bool const slot = kind == Slot || kind == PackedSlot;
        return slot ? version >= 4 : says_rotation;
    }
    /// Blocks of 32 with a scale of 1: their numbers are quant()'s.
    bool is_q8() const { return type == 8; }
    std::uint64_t row_bytes() const {
        return is_q8() ? row_elements / 32 * 34 : std::uint64_t{row_elements} * element_bytes;
    }

    template <class T>
    static void put(std::string& text, T value) {
        text.append(reinterpret_cast<char const*>(&value), sizeof(T));
    }

    /// Of K (part 0) or V (part 1).
    static std::uint16_t element(std::uint32_t part,
                                 std::uint32_t layer,
                                 std::uint32_t position,
                                 std::uint32_t index) {
        return static_cast<std::uint16_t>(part << 14U | layer << 12U | position << 6U | index);
    }

    std::vector<std::int32_t> tokens() const {
        std::int32_t last = 0;
        for (std::int32_t const position : positions)
            last = std::max(last, position);
        std::vector<std::int32_t> ids;
        for (std::int32_t token = 0; token <= last; ++token)
            ids.push_back(100 + token);
        return ids;
    }

    std::string head() const {
        std::string text;
        if (kind == Bare) return text;
        if (kind == Blob) {
            put(text, 0xaf143cd8U);
            put(text, std::int32_t{0});
            return text;
        }
        put(text, kind == Session ? 0x6767736eU : 0x67677371U);
        put(text, kind == Session ? (says_rotation ? 11U : 10U) : version);
        auto words = tokens();
        if (kind == PackedSlot) {
            auto const count = static_cast<std::int32_t>(words.size());
            words.insert(words.begin(), {-1, 1, count});
            if (media_words.empty()) words.push_back(0);
            words.insert(words.end(), media_words.begin(), media_words.end());
        }
        put(text, static_cast<std::uint32_t>(words.size()));
        for (std::int32_t const word : words)
            put(text, word);
        if (kind != Session) return text;
        put(text, 5U);
        return text + "llama";
    }

    std::string cells() const {
        std::string text;
        for (std::int32_t const position : positions) {
            put(text, position);
            put(text, cell_sequences);
            text.append(cell_extra_bytes, '\x05');
            for (std::uint32_t sequence = 0; sequence < cell_sequences; ++sequence)
                put(text, sequence);
        }
        return text;
    }

    std::string part(std::uint32_t part_index, std::uint32_t layer) const {
        bool const turned = transposed && part_index == 1;
        std::string text;
        put(text, type);
        if (turned) {
            put(text, element_bytes);
            put(text, row_elements);
        } else {
            put(text, row_bytes());
        }
        if (is_q8()) return text + q8_rows(part_index, layer);
        std::size_t const count = positions.size() * row_elements;
        for (std::size_t at = 0; at < count; ++at) {
            auto const cell = turned ? at % positions.size() : at / row_elements;
            auto const index = turned ? at / positions.size() : at % row_elements;
            std::string bytes(element_bytes, '\0');
            auto const value =
                element(part_index, layer, static_cast<std::uint32_t>(positions[cell]),
                        static_cast<std::uint32_t>(index));
            std::memcpy(bytes.data(), &value, std::min(bytes.size(), sizeof value));
            text += bytes;
        }
        return text;
    }

    static std::int8_t quant(std::uint32_t part,
                             std::uint32_t layer,
                             std::uint32_t position,
                             std::uint32_t index) {
        return static_cast<std::int8_t>(
            static_cast<int>((element(part, layer, position, index) * 37U + 11U) % 101U) - 50);
    }
    std::string q8_rows(std::uint32_t part_index, std::uint32_t layer) const {
        std::string text;
        for (std::int32_t const position : positions)
            for (std::uint32_t index = 0; index < row_elements; ++index) {
                if (index % 32 == 0) put(text, std::uint16_t{0x3c00});
                put(text, quant(part_index, layer, static_cast<std::uint32_t>(position), index));
            }
        return text;
    }

    std::string data() const {
        std::string text;
        put(text, std::uint32_t{transposed});
        put(text, layers);
        if (has_rotation()) {
            put(text, key_rotation);
            put(text, value_rotation);
        }
        for (std::uint32_t index = 0; index < (values ? 2U : 1U); ++index)
            for (std::uint32_t layer = 0; layer < layers; ++layer)
                text += part(index, layer);
        return text;
    }

    std::string body() const {
        std::string text;
        put(text, empty_streams_before + 1 + empty_streams_after);
        for (std::uint32_t stream = 0; stream < empty_streams_before; ++stream)
            put(text, 0U);
        put(text, static_cast<std::uint32_t>(positions.size()));
        text += cells() + data();
        for (std::uint32_t stream = 0; stream < empty_streams_after; ++stream)
            put(text, 0U);
        return text;
    }

    std::string text() const { return head() + body() + appended; }
};

}  // namespace dkv::test
