// Recorded outcomes of a published code: what went in, as a seed, and what came out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/base/result.h"
#include "protocol/base/score_options.h"

namespace dkv::golden {

/// How a case's scores follow from its random numbers.
enum class Shape : std::uint8_t {
    Flat,  ///< The numbers as they are.
    Skew   ///< Shifted right by layer % 7: early layers look more important.
};

/// One case of a golden file. Field names in the file are those of the released code.
struct GoldenCase {
    std::string name;
    std::uint32_t layers = 0;           ///< "L"
    std::uint32_t heads = 0;            ///< "H": query heads
    std::uint32_t prefix = 0;           ///< "N"
    std::uint32_t base = 0;             ///< "base"
    std::uint32_t window = 0;           ///< "ws"
    std::uint32_t kernel = 0;           ///< "kernel"
    double r_max = 0;                   ///< "radio_max"
    std::uint32_t update_interval = 0;  ///< "m"
    std::uint64_t seed = 0;             ///< "seed"
    Shape shape = Shape::Flat;          ///< "shape": flat or skew
    Pool pool = Pool::Avg;              ///< "pooling", avg when absent

    // What the released code made of it. A case that raised has only the first two and `error`.
    std::optional<std::int64_t> stage_limit;                    ///< "B"
    std::vector<std::vector<std::int64_t>> budgets_per_update;  ///< "budgets_per_update"
    std::optional<std::string> error;                           ///< "error": type and text, or null
    std::optional<std::vector<std::int64_t>> stored_lengths;    ///< "stored_len_per_layer"
    std::optional<std::vector<std::int64_t>> first_kept;        ///< "kept_head0_layer0_first16"
    std::optional<std::int64_t> kept_crc32;         ///< "kept_ids_crc32_all_layers_heads"
    std::optional<std::int64_t> duplicate_entries;  ///< "duplicate_entries"
};

/// Errors: CorruptData, naming case and field, for a file of another kind, and for a case without
/// error that lacks an outcome; LimitExceeded for a case of more than 2^28 scores.
Result<std::vector<GoldenCase>> parse_golden(std::string_view text);

/// Errors: those of parse_golden; Io when the file cannot be read.
Result<std::vector<GoldenCase>> read_golden(std::filesystem::path const& path);

}  // namespace dkv::golden
