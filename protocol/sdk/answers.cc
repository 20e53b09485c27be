#include "protocol/sdk/answers.h"

#include <algorithm>
#include <numeric>

#include "protocol/base/kv_layout.h"
#include "protocol/base/printable.h"

namespace dkv::sdk {
namespace {

constexpr std::size_t kPolicyNameMax = 63;
constexpr float kMassMax = 1 + 1e-3F;           // The sum of many rounded shares.
constexpr std::uint64_t kThreadsMax = 4096;     // That could all have been busy since the opening.
constexpr std::uint32_t kBlockTokensMax = 256;  // Of a host's block table.

std::string readable(std::string const& text) {
    if (text.size() <= kErrorTextBytesMax) return printable(text, kErrorTextBytesMax);
    return printable(text, kErrorTextBytesMax - 3) + "...";
}

bool is_name(std::string const& name) {
    return !name.empty() && name.size() <= kPolicyNameMax &&
           std::ranges::all_of(name, [](char letter) { return letter > ' ' && letter < '\x7F'; });
}

Result<void> check_bytes(char const* what, std::uint64_t said, std::uint64_t real) {
    if (said == real) return {};
    return corrupt_answer("committed " + std::to_string(said) + " bytes " + what +
                          " where the lengths make " + std::to_string(real));
}

}  // namespace

Error corrupt_answer(std::string const& message) {
    return corrupt("the sidecar " + message);
}

Error error_of(wire::FailureT const& failure) {
    auto const number = static_cast<std::uint16_t>(failure.code);
    bool const known =
        number >= 1 && number <= static_cast<std::uint16_t>(ErrorCode::PermissionDenied);
    return Error{known ? static_cast<ErrorCode>(number) : ErrorCode::Internal,
                 readable(failure.message)};
}

Result<void> check_opened(wire::SessionOpenedT const& opened,
                          Geometry const& geometry,
                          std::uint32_t prompt_tokens) {
    if (!is_name(opened.policy->name))
        return corrupt_answer("names a policy of " + std::to_string(opened.policy->name.size()) +
                              " bytes that are not a name: '" + readable(opened.policy->name) +
                              "'");
    if (!opened.compress) return {};
    auto const tokens = std::to_string(prompt_tokens);
    if (opened.window > prompt_tokens || opened.stage_rows > prompt_tokens)
        return corrupt_answer("wants a window of " + std::to_string(opened.window) + " and " +
                              std::to_string(opened.stage_rows) + " staged rows of " + tokens +
                              " tokens");
    StagingLayout const layout{.geometry = geometry, .rows_max = opened.stage_rows};
    StagingLayout const most{.geometry = geometry, .rows_max = prompt_tokens};
    std::uint64_t const needed = opened.stage_rows == 0 ? 0 : layout.region_bytes();
    if (opened.staging_bytes < needed || opened.staging_bytes > most.region_bytes())
        return corrupt_answer("wants " + std::to_string(opened.staging_bytes) + " bytes to stage " +
                              std::to_string(opened.stage_rows) + " rows in");
    auto const rows = std::uint64_t{geometry.layers} * geometry.kv_heads * prompt_tokens;
    if (opened.destination_bytes == 0 ||
        opened.destination_bytes > packed_bytes_max(geometry, rows))
        return corrupt_answer("wants " + std::to_string(opened.destination_bytes) +
                              " bytes of destination for " + tokens + " tokens");
    return {};
}

Result<void> check_lengths(wire::LayerProgressT const& progress,
                           std::uint32_t kv_heads,
                           std::uint32_t rows_max) {
    auto const name = "layer " + std::to_string(progress.layer);
    if (progress.lengths.size() != kv_heads)
        return corrupt_answer("gave " + name + " " + std::to_string(progress.lengths.size()) +
                              " lengths for " + std::to_string(kv_heads) + " KV heads");
    for (std::uint32_t const length : progress.lengths)
        if (length > rows_max)
            return corrupt_answer("gave " + name + " " + std::to_string(length) +
                                  " rows in a head; the most is " + std::to_string(rows_max));
    return {};
}

Result<void> check_positions(std::span<std::int32_t const> positions,
                             std::uint32_t prompt_tokens,
                             std::string const& whose) {
    std::int64_t before = -1;
    for (auto const position : positions) {
        if (position <= before || position >= std::int64_t{prompt_tokens})
            return corrupt_answer("packed position " + std::to_string(position) + " after " +
                                  std::to_string(before) + " in " + whose + ", of a prompt of " +
                                  std::to_string(prompt_tokens));
        before = position;
    }
    return {};
}

Result<void> check_totals(wire::CommittedT const& committed,
                          Geometry const& geometry,
                          std::uint32_t prompt_tokens,
                          Deadline opened_at) {
    auto const& masses = committed.mass_kept;
    if (!masses.empty() && masses.size() != geometry.layers)
        return corrupt_answer("committed " + std::to_string(masses.size()) +
                              " shares of mass for " + std::to_string(geometry.layers) + " layers");
    for (std::size_t layer = 0; layer < masses.size(); ++layer)
        if (!(masses[layer] >= 0 && masses[layer] <= kMassMax))  // NaN fails both.
            return corrupt_answer("committed " + std::to_string(masses[layer]) +
                                  " as the share of mass that layer " + std::to_string(layer) +
                                  " keeps");
    auto const rows =
        std::accumulate(committed.lengths.begin(), committed.lengths.end(), std::uint64_t{0});
    DKV_TRY(check_bytes("in full", committed.bytes_full, geometry.cache_bytes(prompt_tokens)));
    DKV_TRY(check_bytes("kept", committed.bytes_kept, rows * 2 * geometry.row_bytes()));
    if (auto const most = geometry.cache_bytes(std::uint64_t{prompt_tokens} + kBlockTokensMax);
        committed.bytes_block_table > most)
        return corrupt_answer("committed " + std::to_string(committed.bytes_block_table) +
                              " bytes of a block table that has " + std::to_string(most) +
                              " at most");
    auto const passed =
        std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - opened_at).count();
    for (auto const time : {committed.busy_ns, committed.wait_ns})
        if (time / kThreadsMax > static_cast<std::uint64_t>(passed))
            return corrupt_answer("committed " + std::to_string(time) + " ns of its time after " +
                                  std::to_string(passed) + " ns");
    return {};
}

std::uint64_t session_words_max(Geometry const& geometry) {
    // Scored, Staged, Committed and a Trimmed for each later layer, of every layer; Planned and
    // Committed have all of them once more. Four times that, for repeated messages are allowed.
    std::uint64_t const layers = std::uint64_t{geometry.layers} + 8;
    return 4 * layers * layers * (geometry.kv_heads + 8);
}

std::uint64_t words_of(wire::BodyUnion const& event) {
    constexpr std::uint64_t kOfEach = 8;
    if (auto const* progress = event.AsLayerProgress()) return kOfEach + progress->lengths.size();
    if (auto const* planned = event.AsPlanned()) return kOfEach + planned->lengths.size();
    if (auto const* committed = event.AsCommitted())
        return kOfEach + committed->lengths.size() + committed->mass_kept.size();
    return kOfEach;  // SessionFailed: its text is cut when it is read, and it ends the session.
}

}  // namespace dkv::sdk
