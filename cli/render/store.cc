#include "cli/render/store.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/render/table.h"
#include "cli/render/text.h"

namespace dkv::cli {
namespace {

std::string age_text(std::int64_t then_ns, std::int64_t now_ns) {
    return human_duration(static_cast<std::uint64_t>(std::max<std::int64_t>(0, now_ns - then_ns)) /
                          1'000'000);
}

std::string verified_text(StoredCache const& cache, std::int64_t now_ns, Style const& style) {
    switch (cache.verified) {
        case Verified::Never: return "-";
        case Verified::Good: return age_text(cache.verified_ns, now_ns) + " ago";
        case Verified::Changed: return "changed since";
        case Verified::Bad: return toned(Tone::Bad, "damaged", style);
    }
    return "";
}

char const* verified_word(Verified verified) {
    switch (verified) {
        case Verified::Never: return "never";
        case Verified::Good: return "good";
        case Verified::Changed: return "changed";
        case Verified::Bad: return "damaged";
    }
    return "";
}

std::string stored_policy(StoredCache const& cache) {
    if (!cache.error.empty()) return "?";
    if (cache.whole) return "whole";
    return cache.policy.empty() ? "compacted" : one_line(cache.policy);
}

char const* what_word(PrunedCache::What what) {
    switch (what) {
        case PrunedCache::What::Compacted: return "compacted";
        case PrunedCache::What::Deleted: return "deleted";
        case PrunedCache::What::Left: return "left";
    }
    return "";
}

}  // namespace

std::string store_text(std::vector<StoredCache> const& caches,
                       std::int64_t now_ns,
                       Style const& style) {
    using enum Column::Align;
    Table table({{"CACHE", Left},
                 {"MODEL", Left},
                 {"TOKENS", Right},
                 {"POLICY", Left},
                 {"SIZE", Right},
                 {"AGE", Right},
                 {"VERIFIED", Left}});
    std::uint64_t bytes = 0;
    std::size_t compacted = 0;
    for (auto const& cache : caches) {
        bool const known = cache.error.empty();
        bytes += cache.seen.bytes;
        compacted += known && !cache.whole ? 1 : 0;
        table.add({one_line(cache.path.string()), cache.model.empty() ? "-" : one_line(cache.model),
                   known ? fmt::format("{}", cache.prompt_tokens) : "-", stored_policy(cache),
                   human_bytes(cache.seen.bytes), age_text(cache.seen.written_ns, now_ns),
                   verified_text(cache, now_ns, style)});
    }
    return table.text(style) + fmt::format("{}, {}, {} compacted\n",
                                           counted(caches.size(), "cache"), human_bytes(bytes),
                                           compacted);
}

Json to_json(StoredCache const& cache) {
    Json json{{"file", cache.path.string()},
              {"bytes", cache.seen.bytes},
              {"written_ns", cache.seen.written_ns},
              {"verified", verified_word(cache.verified)},
              {"verified_ns", cache.verified_ns > 0 ? Json(cache.verified_ns) : Json()}};
    if (!cache.error.empty()) {
        json["error"] = cache.error;
        return json;
    }
    json["format"] = name_of(cache.format);
    json["model"] = cache.model;
    json["tokens"] = cache.prompt_tokens;
    json["whole"] = cache.whole;
    json["policy"] = cache.policy.empty() ? Json() : Json(cache.policy);
    return json;
}

std::string pruned_text(PrunedCache const& cache, bool dry_run, Style const& style) {
    auto const name = one_line(cache.path.string());
    switch (cache.what) {
        case PrunedCache::What::Left:
            return fmt::format("{}: left as it is: {}\n", name, one_line(cache.why));
        case PrunedCache::What::Deleted:
            return fmt::format("{}: {}, {}\n", name, dry_run ? "would be deleted" : "deleted",
                               human_bytes(cache.bytes_before));
        case PrunedCache::What::Compacted: break;
    }
    return fmt::format("{}: {} of its tokens, {} {} {}, damage {}\n", name,
                       human_share(cache.share), human_bytes(cache.bytes_before),
                       style.unicode ? "→" : "->", human_bytes(cache.bytes_after),
                       cache.damage ? fmt::format("{:.4f}", *cache.damage) : "not known");
}

Json to_json(PrunedCache const& cache) {
    Json json{{"event", what_word(cache.what)},
              {"file", cache.path.string()},
              {"bytes_before", cache.bytes_before},
              {"bytes_after", cache.bytes_after}};
    if (cache.what == PrunedCache::What::Compacted) {
        json["share"] = cache.share;
        json["damage"] = cache.damage ? Json(*cache.damage) : Json();
    }
    if (!cache.why.empty()) json["why"] = cache.why;
    return json;
}

std::string prune_total_text(PruneTotals const& totals,
                             std::uint64_t budget,
                             bool dry_run,
                             Style const& style) {
    std::string const loss =
        totals.measured == 0 ? ""
                             : fmt::format(" (damage {:.4f} on average, {:.4f} at worst)",
                                           totals.damage_sum / static_cast<double>(totals.measured),
                                           totals.damage_worst);
    std::string const verdict =
        totals.bytes_after <= budget
            ? fmt::format("within {}", human_bytes(budget))
            : fmt::format("{} over {}", human_bytes(totals.bytes_after - budget),
                          human_bytes(budget));
    return fmt::format("{}{}: {} {} {}, {}; {} compacted{}, {} deleted, {} left as they are{}\n",
                       dry_run ? "dry run: " : "", counted(totals.caches, "cache"),
                       human_bytes(totals.bytes_before), style.unicode ? "→" : "->",
                       human_bytes(totals.bytes_after), verdict, totals.compacted, loss,
                       totals.deleted, totals.left,
                       totals.fresh == 0 ? "" : fmt::format(", {} being written", totals.fresh));
}

Json to_json(PruneTotals const& totals) {
    return {{"event", "total"},
            {"caches", totals.caches},
            {"bytes_before", totals.bytes_before},
            {"bytes_after", totals.bytes_after},
            {"compacted", totals.compacted},
            {"deleted", totals.deleted},
            {"left", totals.left},
            {"fresh", totals.fresh},
            {"damage_mean", totals.measured == 0
                                ? Json()
                                : Json(totals.damage_sum / static_cast<double>(totals.measured))},
            {"damage_worst", totals.measured == 0 ? Json() : Json(totals.damage_worst)}};
}

}  // namespace dkv::cli
