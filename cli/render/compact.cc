#include "cli/render/compact.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "cli/render/params.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

/// 8, 4, "mixed" or null.
Json bits_json(RowBits bits) {
    switch (bits) {
        case RowBits::Eight: return 8;
        case RowBits::Four: return 4;
        case RowBits::Mixed: return name_of(bits);
        case RowBits::Own: break;
    }
    return nullptr;
}

std::string seconds_text(double seconds) {
    return human_duration(static_cast<std::uint64_t>(std::llround(seconds * 1000)));
}

/// "512 of 3584 tokens per head", or "200 to 824 (512 on average) of 3584 tokens per head"
std::string tokens_text(offline::CompactOutcome const& outcome) {
    auto const [least, most] = std::ranges::minmax(outcome.lengths);
    if (least == most) return fmt::format("{} of {} tokens per head", least, outcome.prompt_tokens);
    auto const rows =
        std::accumulate(outcome.lengths.begin(), outcome.lengths.end(), std::uint64_t{0});
    return fmt::format("{} to {} tokens per head ({:.1f} on average) of {}", least, most,
                       static_cast<double>(rows) / static_cast<double>(outcome.lengths.size()),
                       outcome.prompt_tokens);
}

std::string compact_mass_text(std::vector<float> const& mass) {
    if (mass.empty()) return "";
    double sum = 0;
    for (float const one : mass)
        sum += double{one};
    return fmt::format("; {} of the attention ({} in the worst layer)",
                       human_share(sum / static_cast<double>(mass.size())),
                       human_share(double{std::ranges::min(mass)}));
}

Json lengths_json(offline::CompactOutcome const& outcome) {
    Json lengths = Json::array();
    auto const heads = outcome.geometry.kv_heads;
    for (std::size_t at = 0; heads > 0 && at + heads <= outcome.lengths.size(); at += heads)
        lengths.push_back(std::span(outcome.lengths).subspan(at, heads));
    return lengths;
}

}  // namespace

std::string compact_text(offline::CompactOutcome const& outcome, bool dry_run, Style const& style) {
    std::string const arrow = style.unicode ? "→" : "->";
    std::string text = fmt::format("{} {} {}: ", one_line(outcome.input.string()), arrow,
                                   one_line(outcome.output.string()));
    if (outcome.already_there) return text + "done before; nothing to do\n";
    if (!outcome.lengths.empty() && !outcome.kept_whole)
        text += tokens_text(outcome) + ", ";
    else
        text += fmt::format("all {}, ", counted(outcome.prompt_tokens, "token"));
    text += fmt::format("{} {} {}", human_bytes(outcome.file_bytes_before), arrow,
                        human_bytes(outcome.file_bytes_after));
    if (outcome.file_bytes_after != outcome.file_bytes_before)
        text +=
            fmt::format(" ({})", human_share(outcome.file_bytes_after, outcome.file_bytes_before));
    if (outcome.from != outcome.to)
        text += fmt::format(", {} {} {}", name_of(outcome.from), arrow, name_of(outcome.to));
    text += compact_mass_text(outcome.mass_kept);
    text += fmt::format("; {}{}\n", seconds_text(outcome.seconds),
                        dry_run ? "; nothing was written" : "");
    for (auto const& note : outcome.notes)
        text += "  note: " + one_line(note) + "\n";
    return text;
}

Json to_json(offline::CompactOutcome const& outcome) {
    return {{"input", outcome.input.string()},
            {"output", outcome.output.string()},
            {"already_there", outcome.already_there},
            {"kept_whole", outcome.kept_whole},
            {"from", name_of(outcome.from)},
            {"to", name_of(outcome.to)},
            {"model", outcome.model},
            {"prompt_tokens", outcome.prompt_tokens},
            {"policy", outcome.params.name},
            {"params", params_json(outcome.params)},
            {"bits", bits_json(outcome.bits)},
            {"lengths", lengths_json(outcome)},
            {"mass_kept", outcome.mass_kept.empty() ? Json() : Json(outcome.mass_kept)},
            {"rows_bytes_before", outcome.rows_bytes_before},
            {"rows_bytes_after", outcome.rows_bytes_after},
            {"file_bytes_before", outcome.file_bytes_before},
            {"file_bytes_after", outcome.file_bytes_after},
            {"seconds", outcome.seconds},
            {"notes", outcome.notes}};
}

void CompactTotal::add(offline::CompactOutcome const& outcome) {
    (outcome.already_there ? already_there : done) += 1;
    bytes_before += outcome.file_bytes_before;
    bytes_after += outcome.file_bytes_after;
}

std::string total_text(CompactTotal const& total, bool dry_run, Style const& style) {
    std::string text = fmt::format("{}: {} {}", counted(total.files, "file"), total.done,
                                   dry_run ? "would be written" : "written");
    if (total.already_there > 0) text += fmt::format(", {} done before", total.already_there);
    if (total.failed > 0)
        text += ", " + toned(Tone::Bad, fmt::format("{} failed", total.failed), style);
    if (total.bytes_before > 0)
        text += fmt::format("; {} {} {} ({})", human_bytes(total.bytes_before),
                            style.unicode ? "→" : "->", human_bytes(total.bytes_after),
                            human_share(total.bytes_after, total.bytes_before));
    return text + fmt::format("; {}\n", seconds_text(total.seconds));
}

Json to_json(CompactTotal const& total) {
    return {{"files", total.files},
            {"written", total.done},
            {"already_there", total.already_there},
            {"failed", total.failed},
            {"file_bytes_before", total.bytes_before},
            {"file_bytes_after", total.bytes_after},
            {"seconds", total.seconds}};
}

}  // namespace dkv::cli
