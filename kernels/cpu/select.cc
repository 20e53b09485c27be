#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/order.h"

namespace dkv::cpu {
namespace {

using Histogram = std::array<std::uint32_t, kDigitValues>;

struct Entry {
    std::uint32_t key;
    std::int32_t id;
};

/// The memory of one worker, used for one head after another.
struct Scratch {
    std::vector<std::uint32_t> keys;        // [tokens]
    std::vector<std::uint32_t> candidates;  // Keys that share the threshold's digits so far.
    std::vector<Entry> picked;
    std::vector<Entry> sorted;
};

/// The keep-th largest key of scratch.keys, and how many keys equal to it belong to the selection.
Threshold find_threshold(Scratch& scratch, std::uint32_t keep) {
    Threshold threshold{.key = 0, .rank = keep};
    auto const* candidates = &scratch.keys;
    for (Digit const digit : kDigits) {
        Histogram histogram{};
        for (std::uint32_t const key : *candidates)
            ++histogram[digit.of(key)];
        threshold.descend(digit, histogram);

        std::uint32_t const value = digit.of(threshold.key);
        std::vector<std::uint32_t> matching;
        matching.reserve(histogram[value]);
        for (std::uint32_t const key : *candidates)
            if (digit.of(key) == value) matching.push_back(key);
        scratch.candidates = std::move(matching);
        candidates = &scratch.candidates;
    }
    return threshold;
}

/// The selection, in id order: keys above the threshold, and its first `rank` equals.
void pick(Scratch& scratch, Threshold threshold) {
    scratch.picked.clear();
    for (std::size_t token = 0; token < scratch.keys.size(); ++token) {
        std::uint32_t const key = scratch.keys[token];
        if (key < threshold.key) continue;
        if (key == threshold.key && threshold.rank-- == 0) {
            threshold.rank = 0;
            continue;
        }
        scratch.picked.push_back({key, static_cast<std::int32_t>(token)});
    }
}

/// Best first, by a radix sort from the least digit up. Stable, so equals stay in id order.
void rank(Scratch& scratch) {
    scratch.sorted.resize(scratch.picked.size());
    for (auto digit = kDigits.rbegin(); digit != kDigits.rend(); ++digit) {
        Histogram position{};
        for (Entry const& entry : scratch.picked)
            ++position[digit->of(entry.key)];
        std::uint32_t begin = 0;
        for (std::size_t value = position.size(); value-- > 0;)
            begin += std::exchange(position[value], begin);
        for (Entry const& entry : scratch.picked)
            scratch.sorted[position[digit->of(entry.key)]++] = entry;
        scratch.picked.swap(scratch.sorted);
    }
}

void select_head(std::span<float const> scores, std::span<std::int32_t> ids, Scratch& scratch) {
    if (ids.empty()) return;
    scratch.keys.resize(scores.size());
    std::transform(scores.begin(), scores.end(), scratch.keys.begin(), order_key);

    auto const keep = static_cast<std::uint32_t>(ids.size());
    pick(scratch, find_threshold(scratch, keep));
    rank(scratch);
    std::transform(scratch.picked.begin(), scratch.picked.end(), ids.begin(),
                   [](Entry const& entry) { return entry.id; });
}

}  // namespace

Result<void> select(SelectArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    std::vector<std::size_t> begin(args.keep.size() + 1, 0);
    std::inclusive_scan(args.keep.begin(), args.keep.end(), begin.begin() + 1, std::plus<>(),
                        std::size_t{0});

    std::vector<Scratch> scratch(workers.count());
    workers.for_each(args.keep.size(), [&](std::size_t head, std::size_t worker) {
        select_head(args.scores.subspan(head * args.tokens, args.tokens),
                    args.ids.subspan(begin[head], args.keep[head]), scratch[worker]);
    });
    return {};
}

}  // namespace dkv::cpu
