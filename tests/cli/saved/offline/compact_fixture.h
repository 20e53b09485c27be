// What the tests of compaction share.
#pragma once

#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>

#include <doctest/doctest.h>

#include "cli/saved/offline/compact.h"
#include "cli/saved/offline/side.h"
#include "sidecar/pipeline/job.h"
#include "tests/support/results.h"
#include "tests/support/saved_cache.h"
#include "tests/support/temp_dir.h"

namespace dkv::test {

inline constexpr Geometry kSavedGeometry{.layers = 5, .q_heads = 6, .kv_heads = 2, .head_dim = 8};

inline std::string bytes_of_file(std::filesystem::path const& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

/// Caches made by hand, and what is made of them.
struct CompactFixture {
    TempDir folder;
    std::unique_ptr<Backend> backend = make_cpu_backend(1);
    Geometry geometry = kSavedGeometry;
    std::uint32_t tokens = 90;
    std::vector<float> sinks;  ///< [q_heads], of every layer; or none.

    std::filesystem::path make(std::uint32_t query_rows,
                               unsigned seed = 3,
                               std::string const& name = "cache") {
        return write_random_cache(
            folder / name, seed, geometry, tokens, query_rows,
            [](std::uint32_t layer) { return 2.0F / static_cast<float>(1 + layer); }, sinks);
    }

    offline::CompactRequest request(PolicyRequest const& policy,
                                    std::filesystem::path const& input) {
        return {.input = input, .output = folder / "out", .policy = policy};
    }
    offline::CompactOutcome compact(offline::CompactRequest const& wish) {
        auto outcome = offline::compact(*backend, wish);
        REQUIRE(outcome);
        return std::move(outcome).value();
    }
    /// "invalid_argument: …", with the folder's name taken out.
    std::string refusal(offline::CompactRequest const& wish) {
        auto const outcome = offline::compact(*backend, wish);
        if (outcome) return "";
        std::string message =
            std::string(name_of(outcome.error().code)) + ": " + outcome.error().message;
        for (std::size_t at; (at = message.find(folder.path() + "/")) != std::string::npos;)
            message.erase(at, folder.path().size() + 1);
        return message;
    }
    std::vector<std::string> files() const {
        std::vector<std::string> names;
        for (auto const& entry : std::filesystem::directory_iterator(folder.path()))
            names.push_back(entry.path().filename());
        std::ranges::sort(names);
        return names;
    }

    /// [layers][kv_heads] positions that the live job packs.
    std::vector<std::vector<std::vector<std::int32_t>>> live(SavedCache const& cache,
                                                             PolicyParams const& params) {
        JobSpec const spec{
            .geometry = geometry, .prompt_tokens = tokens, .params = params, .progressive = true};
        JobNeeds const needs = needs_of(spec);
        std::vector<std::byte> staging(needs.staging_bytes);
        std::vector<std::byte> destination(needs.destination_bytes);
        auto const job = Job::open(*backend, spec, staging, destination);
        REQUIRE(job);
        for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
            auto const saved = cache.layer(layer);
            REQUIRE(saved);
            auto const wanted = std::max(needs.window, params.window);
            REQUIRE(job.value()->layer_ready(
                layer, {.keys = saved.value().keys,
                        .values = saved.value().values,
                        .queries = offline::last_queries(saved.value(), wanted),
                        .scores = {},
                        .sink_logits = saved.value().sink_logits}));
        }
        std::vector<std::vector<std::vector<std::int32_t>>> kept;
        for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
            auto const at = job.value()->pack(layer);
            REQUIRE(at);
            PackedLayer const place =
                packed_layer(geometry, at.value().lengths, at.value().destination_offset);
            auto& heads = kept.emplace_back();
            for (std::uint32_t head = 0; head < geometry.kv_heads; ++head) {
                auto& list = heads.emplace_back(at.value().lengths[head]);
                std::memcpy(list.data(),
                            destination.data() + place.positions_offset +
                                sizeof(std::int32_t) * place.head_rows[head],
                            sizeof(std::int32_t) * list.size());
            }
        }
        return kept;
    }

    /// Every row of `made` is that of its position in `from`. Returns the positions.
    std::vector<std::vector<std::vector<std::int32_t>>> rows_of(SavedCache const& from,
                                                                SavedCache const& made) {
        std::vector<std::vector<std::vector<std::int32_t>>> kept;
        for (std::uint32_t index = 0; index < geometry.layers; ++index) {
            auto const a = from.layer(index).value();
            auto const b = made.layer(index).value();
            auto& heads = kept.emplace_back();
            for (std::uint32_t head = 0; head < geometry.kv_heads; ++head) {
                auto const keys = b.keys_of(head);
                auto& positions = heads.emplace_back(keys.tokens);
                std::iota(positions.begin(), positions.end(), 0);  // Unless the file says others.
                std::ranges::copy(b.positions_of(head), positions.begin());
                auto const values = b.values_of(head);
                bool same = keys.tokens == positions.size();
                for (std::uint32_t row = 0; same && row < keys.tokens; ++row) {
                    auto const at = static_cast<std::uint32_t>(positions[row]);
                    same = std::memcmp(keys.row(0, row), a.keys.row(head, at),
                                       geometry.row_bytes()) == 0 &&
                           std::memcmp(values.row(0, row), a.values.row(head, at),
                                       geometry.row_bytes()) == 0;
                }
                CHECK(same);
            }
        }
        return kept;
    }

    /// The share of the last `window` queries' attention on these positions and on the sinks, the
    /// long way round.
    double mass(SavedCache const& cache,
                std::uint32_t index,
                std::uint32_t window,
                std::vector<std::vector<std::int32_t>> const& kept) {
        auto const layer = cache.layer(index).value();
        auto const row = [](RowsView const& view, std::uint32_t head, std::uint32_t token) {
            return reinterpret_cast<float const*>(view.row(head, token));
        };
        double sum = 0;
        for (std::uint32_t head = 0; head < geometry.q_heads; ++head)
            for (std::uint32_t query = 0; query < window; ++query) {
                std::uint32_t const kv = head / geometry.group();
                auto const* const q =
                    row(layer.queries, head, layer.queries.tokens - window + query);
                std::vector<double> weights;
                for (std::uint32_t t = 0; t < tokens - window + query + 1; ++t) {
                    auto const* const k = row(layer.keys, kv, t);
                    double const dot = std::inner_product(q, q + geometry.head_dim, k, 0.0);
                    weights.push_back(std::exp(dot / std::sqrt(double{1} * geometry.head_dim)));
                }
                double const sink = sinks.empty() ? 0 : std::exp(double{layer.sink_logits[head]});
                double on_kept = sink;
                for (std::int32_t const t : kept[kv])
                    if (static_cast<std::size_t>(t) < weights.size())
                        on_kept += weights[static_cast<std::size_t>(t)];
                sum += on_kept / std::accumulate(weights.begin(), weights.end(), sink);
            }
        return sum / geometry.q_heads / window;
    }
};

inline constexpr char const* kEveryPolicy[] = {"auto",      "streamingllm", "h2o",   "snapkv",
                                               "pyramidkv", "dynamickv",    "knorm", "keydiff"};

}  // namespace dkv::test
