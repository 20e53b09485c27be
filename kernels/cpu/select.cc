#include <algorithm>
#include <array>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/order.h"

namespace dkv::cpu {
namespace {

struct Entry {
    std::uint32_t key;
    std::int32_t id;
};

/// The memory of one worker, used for one head after another.
struct Scratch {
    std::vector<std::uint32_t> keys;        // [tokens]
    std::vector<std::uint32_t> candidates;  // Keys that share the threshold's digits so far.
    std::vector<Entry> picked;              // [keep + 1]
    std::vector<Entry> sorted;              // [keep]
};

/// The keep-th largest key, and how many keys equal to it belong to the selection.
Threshold find_threshold(Scratch& scratch, std::size_t keep) {
    Threshold threshold{.key = 0, .rank = keep};
    scratch.candidates.resize(scratch.keys.size() + kKeysSlack);
    std::span<std::uint32_t const> candidates = scratch.keys;
    for (Digit const digit : kDigits) {
        Histogram<std::uint32_t> histogram;
        histogram.add(digit, candidates);
        threshold.descend(digit, histogram);
        // In place from the second time on: a key is never written behind where it was read.
        std::uint64_t above = 0;
        std::size_t const count = collect_keys(candidates, threshold.key, threshold.last(digit),
                                               scratch.candidates.data(), above);
        candidates = std::span(scratch.candidates).first(count);
    }
    return threshold;
}

/// The selection, in id order: keys above the threshold, and its first `rank` equals. Without
/// branches, since they could not be predicted.
void pick(Scratch& scratch, Threshold threshold, std::size_t keep) {
    scratch.picked.resize(keep + 1);
    auto equals = static_cast<std::uint32_t>(threshold.rank);
    std::size_t count = 0;
    for (std::size_t token = 0; token < scratch.keys.size(); ++token) {
        std::uint32_t const key = scratch.keys[token];
        scratch.picked[count] = {key, static_cast<std::int32_t>(token)};
        std::uint32_t const equal = (key == threshold.key) & (equals != 0);
        equals -= equal;
        count += (key > threshold.key) | equal;
    }
    scratch.picked.resize(keep);
}

/// Best first, by a radix sort from the least digit up. Stable, so equals stay in id order.
void rank(Scratch& scratch) {
    scratch.sorted.resize(scratch.picked.size());
    for (auto digit = kDigits.rbegin(); digit != kDigits.rend(); ++digit) {
        std::array<std::uint32_t, kDigitValues> position{};
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
    make_keys(scores, scratch.keys.data());
    pick(scratch, find_threshold(scratch, ids.size()), ids.size());
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
