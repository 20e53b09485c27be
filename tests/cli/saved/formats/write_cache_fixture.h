// Numbered caches written by write_cache(), and read back.
#pragma once

#include <doctest/doctest.h>

#include "tests/cli/saved/formats/written.h"

namespace dkv::test {

using Kept = std::vector<std::vector<std::vector<std::int32_t>>>;

struct WriteCacheFixture {
    TempDir folder;
    std::string path = folder / "out";
    std::unique_ptr<Backend> backend = make_cpu_backend(1);
    Numbered numbers;

    std::unique_ptr<SavedCache> written(WriteRequest const& request) {
        auto const bytes = write_cache(*backend, request);
        REQUIRE(bytes);
        CHECK(bytes.value() == std::filesystem::file_size(path));
        auto const said = written_bytes(request);
        REQUIRE(said);
        CHECK(said.value() == bytes.value());
        auto opened = open_cache(path);
        REQUIRE(opened);
        for (std::uint32_t layer = 0; layer < opened.value()->geometry().layers; ++layer)
            REQUIRE(opened.value()->verify(layer));
        return std::move(opened).value();
    }
    std::string refused(WriteRequest const& request, ErrorCode code = ErrorCode::Unsupported) {
        auto const bytes = write_cache(*backend, request);
        REQUIRE_FALSE(bytes);
        CHECK(bytes.error().code == code);
        CHECK(std::filesystem::is_empty(folder.path()));
        return bytes.error().message;
    }
    /// Every kept row is the one of its position.
    static void check_rows(SavedCache const& cache, Kept const& kept) {
        for (std::uint32_t layer = 0; layer < kept.size(); ++layer) {
            auto const saved = cache.layer(layer).value();
            for (std::uint32_t head = 0; head < kept[layer].size(); ++head) {
                auto const& rows = kept[layer][head];
                auto const positions = saved.positions_of(head);
                REQUIRE(saved.keys_of(head).tokens == rows.size());
                for (std::uint32_t row = 0; row < rows.size(); ++row) {
                    auto const at = static_cast<std::uint32_t>(rows[row]);
                    if (!positions.empty()) CHECK(positions[row] == rows[row]);
                    for (std::uint32_t dim = 0; dim < 4; ++dim) {
                        float const wanted = Numbered::number(layer, head, at, dim);
                        CHECK(element_of(saved.keys_of(head), 0, row, dim) == wanted);
                        CHECK(element_of(saved.values_of(head), 0, row, dim) == -wanted);
                    }
                }
            }
        }
    }
};

inline std::vector<std::int32_t> const kAll{0, 1, 2, 3, 4, 5};
inline Kept const kWhole{{kAll, kAll}, {kAll, kAll}};
inline Kept const kUniform{{{0, 2, 5}, {1, 4, 5}}, {{3, 5}, {0, 5}}};
inline Kept const kRagged{{{0, 2, 3, 5}, {5}}, {{}, {1, 2, 5}}};

}  // namespace dkv::test
