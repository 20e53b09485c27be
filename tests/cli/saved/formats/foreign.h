// Files as other programs write them, with numbered elements, and the refusals that they meet.
#pragma once

#include <array>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/cli/saved/formats/written.h"

namespace dkv::test {

inline std::string floats(std::size_t count, float first) {
    std::string bytes;
    for (std::size_t i = 0; i < count; ++i) {
        float const value = first + static_cast<float>(i);
        bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
    }
    return bytes;
}

/// [1, 2, 3, 4] keys from 0, values from 100, 1000 on in the next layer.
inline SavedFile hf_file() {
    SavedFile file;
    for (int layer = 0; layer < 2; ++layer)
        for (char const* name : {"k_", "v_"})
            file.add(name + std::to_string(layer), "F32", {1, 2, 3, 4},
                     floats(24, static_cast<float>(1000 * layer + (*name == 'v' ? 100 : 0))));
    return file;
}

inline SavedFile vllm_layer(std::vector<std::uint64_t> const& shape, float first) {
    SavedFile file;
    std::size_t count = 1;
    for (auto const extent : shape)
        count *= extent;
    file.add("kv_cache", "F32", shape, floats(count, first));
    return file;
}

/// [2, layers, tokens, 8]: element i of the chunk is first + i.
inline std::string chunk(std::int32_t layers,
                         std::int32_t tokens,
                         float first,
                         std::int32_t dtype = 4) {
    auto const count = 16 * static_cast<std::size_t>(layers) * static_cast<std::size_t>(tokens);
    std::array<std::int32_t, 7> const header{
        static_cast<std::int32_t>(4 * count), 1, dtype, 2, layers, tokens, 8};
    return std::string(reinterpret_cast<char const*>(header.data()), sizeof header) +
           floats(count, first);
}

struct ForeignFilesFixture {
    TempDir folder;
    std::string path = folder / "cache";

    Result<std::unique_ptr<SavedCache>> open(std::string const& text, OpenOptions options = {}) {
        write_file(path, text);
        return open_cache(path, options);
    }
    void check_refused(std::string const& text,
                       std::string const& message,
                       ErrorCode code = ErrorCode::CorruptData,
                       OpenOptions const& options = {}) {
        CAPTURE(message);
        auto const file = open(text, options);
        REQUIRE_FALSE(file);
        CHECK(file.error().message == path + ": " + message);
        CHECK(file.error().code == code);
    }
    std::string folder_refused(ErrorCode code, OpenOptions const& options = {}) {
        auto const file = open_cache(folder.path(), options);
        REQUIRE_FALSE(file);
        CHECK(file.error().code == code);
        REQUIRE(file.error().message.starts_with(folder.path()));
        return file.error().message.substr(folder.path().size());
    }
};

inline void check_element(RowsView const& view, std::array<std::uint32_t, 3> at, float wanted) {
    CHECK(element_of(view, at[0], at[1], at[2]) == wanted);
}

}  // namespace dkv::test
