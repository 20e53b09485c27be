// Caches written through write_cache() for the tests of this folder: numbered rows, so that every
// element says where it came from.
#pragma once

#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "cli/saved/formats/write_cache.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

namespace dkv::test {

inline std::string read_text(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

inline float element_of(RowsView const& view,
                        std::uint32_t head,
                        std::uint32_t token,
                        std::uint32_t dim) {
    float value = 0;
    std::memcpy(&value, view.row(head, token) + dim * view.dim_stride * sizeof value, sizeof value);
    return value;
}

/// Whole f32 rows: layer · 1000 + head · 100 + token + dim / 10, values negative.
struct Numbered {
    Geometry geometry{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 4};
    std::uint32_t tokens = 6;
    std::uint32_t query_rows = 2;
    std::vector<std::vector<float>> keys, values, queries;

    explicit Numbered(std::uint32_t prompt_tokens = 6, std::uint32_t head_dim = 4)
        : tokens(prompt_tokens) {
        geometry.head_dim = head_dim;
        auto const rows = [&](std::uint32_t heads, std::uint32_t count, std::uint32_t layer,
                              float sign) {
            std::vector<float> out;
            for (std::uint32_t head = 0; head < heads; ++head)
                for (std::uint32_t token = 0; token < count; ++token)
                    for (std::uint32_t dim = 0; dim < geometry.head_dim; ++dim)
                        out.push_back(sign * number(layer, head, token, dim));
            return out;
        };
        for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
            keys.push_back(rows(geometry.kv_heads, tokens, layer, 1));
            values.push_back(rows(geometry.kv_heads, tokens, layer, -1));
            queries.push_back(rows(geometry.q_heads, query_rows, layer, 1));
        }
    }

    static float number(std::uint32_t layer,
                        std::uint32_t head,
                        std::uint32_t token,
                        std::uint32_t dim) {
        return static_cast<float>(layer * 1000 + head * 100 + token) + static_cast<float>(dim) / 10;
    }

    SavedLayer layer(std::uint32_t index) {
        auto const view = [&](std::vector<float>& data, std::uint32_t heads, std::uint32_t count) {
            return dense_rows(reinterpret_cast<std::byte*>(data.data()), Dtype::F32, heads, count,
                              geometry.head_dim);
        };
        SavedLayer saved;
        saved.keys = view(keys[index], geometry.kv_heads, tokens);
        saved.values = view(values[index], geometry.kv_heads, tokens);
        saved.queries = view(queries[index], geometry.q_heads, query_rows);
        return saved;
    }

    CacheFacts facts() const {
        CacheFacts facts;
        facts.geometry = geometry;
        facts.model = "numbers";
        facts.prompt_tokens = tokens;
        facts.query_rows = query_rows;
        facts.rope.theta = 10000;
        facts.lengths.assign(geometry.layers * geometry.kv_heads, tokens);
        return facts;
    }

    /// `kept` [layers][heads] rows; empty: all of them.
    WriteRequest request(std::string const& path,
                         FileFormat format,
                         std::vector<std::vector<std::vector<std::int32_t>>> kept = {}) {
        WriteRequest request{.path = path, .format = format, .facts = facts(), .layer = {}};
        if (!kept.empty()) {
            request.facts.lengths.clear();
            for (auto const& heads : kept)
                for (auto const& rows : heads)
                    request.facts.lengths.push_back(static_cast<std::uint32_t>(rows.size()));
        }
        request.layer = [this, kept](std::uint32_t index) -> Result<RowsToWrite> {
            RowsToWrite rows{.source = layer(index), .rows = {}};
            if (!kept.empty())
                for (auto const& head : kept[index])
                    rows.rows.insert(rows.rows.end(), head.begin(), head.end());
            return rows;
        };
        return request;
    }
};

/// Mixed bits. `refined` [layers] rows, as a layer's lie head after head.
inline WriteRequest with_refined(WriteRequest request,
                                 std::vector<std::vector<std::int32_t>> refined) {
    request.bits = RowBits::Mixed;
    request.refined.clear();
    for (auto const& rows : refined)
        request.refined.push_back(static_cast<std::uint32_t>(rows.size()));
    request.layer = [refined = std::move(refined),
                     plain = request.layer](std::uint32_t index) -> Result<RowsToWrite> {
        auto rows = plain(index);
        if (rows) rows.value().refined = refined[index];
        return rows;
    };
    return request;
}

}  // namespace dkv::test
