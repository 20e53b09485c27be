// Safetensors files made by hand, for tests: a cache that is right, and every way to spoil it.
#pragma once

#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "protocol/base/geometry.h"

namespace dkv::test {

using Header = nlohmann::ordered_json;

struct SavedFile {
    Header header = Header::object();
    std::string data;

    void add(std::string const& name,
             std::string const& dtype,
             std::vector<std::uint64_t> const& shape,
             std::string const& bytes) {
        header[name] = {{"dtype", dtype},
                        {"shape", shape},
                        {"data_offsets", {data.size(), data.size() + bytes.size()}}};
        data += bytes;
    }
    /// The file as it would lie on a disk.
    std::string text() const { return framed(header.dump()); }
    std::string framed(std::string const& head) const {
        std::string file;
        for (unsigned shift = 0; shift < 64; shift += 8)
            file += static_cast<char>(std::uint64_t{head.size()} >> shift & 0xff);
        return file + head + data;
    }
};

inline void write_file(std::string const& path, std::string const& text) {
    std::ofstream(path, std::ios::binary) << text;
}

/// `rows_of(layer, part)` gives the f32 bytes of "keys", "values" and "q_window".
template <class RowsOf>
SavedFile saved_cache(Geometry const& geometry,
                      std::uint32_t tokens,
                      std::uint32_t query_rows,
                      RowsOf const& rows_of) {
    SavedFile file;
    file.header["__metadata__"] = {{"format", "dkv"},
                                   {"version", "1"},
                                   {"model", "a small one"},
                                   {"n_prompt", std::to_string(tokens)}};
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
        std::string const prefix = "layers." + std::to_string(layer) + ".";
        for (char const* part : {"keys", "values"})
            file.add(prefix + part, "F32", {geometry.kv_heads, tokens, geometry.head_dim},
                     rows_of(layer, part));
        if (query_rows > 0)
            file.add(prefix + "q_window", "F32", {geometry.q_heads, query_rows, geometry.head_dim},
                     rows_of(layer, "q_window"));
    }
    return file;
}

/// Every layer gets these sinks, [q_heads].
inline void add_sinks(SavedFile& file, Geometry const& geometry, std::vector<float> const& sinks) {
    std::string const bytes(reinterpret_cast<char const*>(sinks.data()),
                            sinks.size() * sizeof(float));
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer)
        file.add("layers." + std::to_string(layer) + ".sink_logits", "F32", {sinks.size()}, bytes);
}

/// A whole cache of normal numbers; a layer's queries are times `sharpness(layer)`.
inline SavedFile random_cache(
    unsigned seed = 1,
    Geometry const& geometry = {.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 4},
    std::uint32_t tokens = 80,
    std::uint32_t query_rows = 8,
    std::function<float(std::uint32_t layer)> const& sharpness = {},
    std::vector<float> const& sinks = {}) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    auto const rows_of = [&](std::uint32_t layer, std::string const& part) {
        bool const queries = part == "q_window";
        std::size_t const rows = queries ? std::size_t{geometry.q_heads} * query_rows
                                         : std::size_t{geometry.kv_heads} * tokens;
        float const factor = queries && sharpness ? sharpness(layer) : 1.0F;
        std::string bytes;
        for (std::size_t i = 0; i < rows * geometry.head_dim; ++i) {
            float const value = normal(random) * factor;
            bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
        }
        return bytes;
    };
    auto file = saved_cache(geometry, tokens, query_rows, rows_of);
    if (!sinks.empty()) add_sinks(file, geometry, sinks);
    return file;
}

/// Likewise, written to `path`; returns it.
template <class... Of>
std::string write_random_cache(std::string const& path, Of&&... of) {
    write_file(path, random_cache(std::forward<Of>(of)...).text());
    return path;
}

}  // namespace dkv::test
