#include "tools/golden/golden_check.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <zlib.h>

#include <fmt/format.h>

#include "cli/saved/reference/dynamickv_ref.h"
#include "cli/saved/reference/torch_ops.h"

namespace dkv::golden {
namespace {

using reference::DynamicKvRef;

constexpr std::size_t kFirstKept = 16;

/// Knuth's 64-bit linear congruential generator; the top 20 bits of each state are a score.
class Scores {
public:
    explicit Scores(std::uint64_t seed) : state_(seed) {}

    float next(unsigned shift) {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<float>(state_ >> 44 >> shift);
    }

private:
    std::uint64_t state_;
};

/// The outcome in the terms of the file; as far as it came when the release raises.
struct Outcome {
    std::int64_t stage_limit = 0;
    std::vector<std::vector<std::int64_t>> budgets_per_update;
    std::string raised;
    std::vector<std::int64_t> stored_lengths;
    std::vector<std::int64_t> first_kept;
    std::int64_t kept_crc32 = 0;
    std::int64_t duplicate_entries = 0;
};

Result<DynamicKvRef> run_layers(GoldenCase const& golden) {
    auto policy = DKV_TRY(DynamicKvRef::create({.layers = golden.layers,
                                                .heads = golden.heads,
                                                .prompt_tokens = golden.prefix + golden.window,
                                                .window = golden.window,
                                                .base = golden.base,
                                                .r_max = golden.r_max,
                                                .update_interval = golden.update_interval}));
    Scores random(golden.seed);
    std::vector<float> scores(std::size_t{golden.heads} * golden.prefix);
    for (std::uint32_t layer = 0; layer < golden.layers; ++layer) {
        unsigned const shift = golden.shape == Shape::Skew ? layer % 7 : 0;
        std::ranges::generate(scores, [&] { return random.next(shift); });
        auto const pooled =
            DKV_TRY(reference::pool1d(scores, golden.heads, golden.pool, golden.kernel));
        auto const added = policy.add_layer(pooled);
        if (!added && policy.raised().empty()) return added.error();
        if (!added) break;
    }
    return policy;
}

/// CRC-32 of all kept ids, u32 little-endian, layers then heads, in stored order.
std::int64_t kept_crc32(DynamicKvRef const& policy) {
    uLong crc = crc32(0, nullptr, 0);
    for (auto const& layer : policy.stored()) {
        for (auto const& list : layer) {
            std::vector<Bytef> bytes;
            bytes.reserve(list.size() * 4);
            for (std::int32_t const id : list)
                for (unsigned shift = 0; shift < 32; shift += 8)
                    bytes.push_back(static_cast<Bytef>(static_cast<std::uint32_t>(id) >> shift));
            crc = crc32_z(crc, bytes.data(), bytes.size());
        }
    }
    return static_cast<std::int64_t>(crc);
}

Result<Outcome> run(GoldenCase const& golden) {
    auto const policy = DKV_TRY(run_layers(golden));
    Outcome outcome;
    outcome.stage_limit = policy.stage_limit();
    outcome.budgets_per_update = policy.budgets_per_update();
    outcome.raised = policy.raised();
    for (auto const& layer : policy.stored())
        outcome.stored_lengths.push_back(static_cast<std::int64_t>(layer.front().size()));
    if (!policy.stored().empty()) {
        auto const& list = policy.stored().front().front();
        auto const count = static_cast<std::ptrdiff_t>(std::min(kFirstKept, list.size()));
        outcome.first_kept.assign(list.begin(), list.begin() + count);
    }
    outcome.kept_crc32 = kept_crc32(policy);
    outcome.duplicate_entries = static_cast<std::int64_t>(policy.duplicate_entries());
    return outcome;
}

using Difference = std::optional<Disagreement>;

Difference compare(std::string_view field,
                   std::optional<std::int64_t> const& theirs,
                   std::int64_t ours) {
    if (!theirs || *theirs == ours) return {};
    return Disagreement{std::string(field), fmt::to_string(*theirs), fmt::to_string(ours)};
}

Difference compare(std::string const& field,
                   std::optional<std::vector<std::int64_t>> const& theirs,
                   std::vector<std::int64_t> const& ours) {
    if (!theirs) return {};
    for (std::size_t i = 0; i < std::min(theirs->size(), ours.size()); ++i)
        if (auto different = compare(fmt::format("{}[{}]", field, i), (*theirs)[i], ours[i]))
            return different;
    if (theirs->size() == ours.size()) return {};
    return Disagreement{field, fmt::format("{} entries", theirs->size()),
                        fmt::format("{} entries", ours.size())};
}

Difference compare_updates(std::vector<std::vector<std::int64_t>> const& theirs,
                           std::vector<std::vector<std::int64_t>> const& ours) {
    for (std::size_t i = 0; i < std::min(theirs.size(), ours.size()); ++i)
        if (auto different = compare(fmt::format("budgets_per_update[{}]", i), theirs[i], ours[i]))
            return different;
    if (theirs.size() == ours.size()) return {};
    return Disagreement{"budgets_per_update", fmt::format("{} updates", theirs.size()),
                        fmt::format("{} updates", ours.size())};
}

Difference compare_error(std::optional<std::string> const& theirs, std::string const& ours) {
    if (theirs.value_or("").substr(0, theirs.value_or("").find(':')) == ours) return {};
    auto const word = [](std::string const& error) { return error.empty() ? "no error" : error; };
    return Disagreement{"error", word(theirs.value_or("")), word(ours)};
}

}  // namespace

Result<std::optional<Disagreement>> check_case(GoldenCase const& golden) {
    auto const ours = DKV_TRY(run(golden));
    Difference different = compare("B", golden.stage_limit, ours.stage_limit);
    if (!different) different = compare_updates(golden.budgets_per_update, ours.budgets_per_update);
    if (!different) different = compare_error(golden.error, ours.raised);
    if (!different)
        different = compare("stored_len_per_layer", golden.stored_lengths, ours.stored_lengths);
    if (!different)
        different = compare("kept_head0_layer0_first16", golden.first_kept, ours.first_kept);
    if (!different)
        different = compare("kept_ids_crc32_all_layers_heads", golden.kept_crc32, ours.kept_crc32);
    if (!different)
        different = compare("duplicate_entries", golden.duplicate_entries, ours.duplicate_entries);
    return different;
}

}  // namespace dkv::golden
