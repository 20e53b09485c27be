#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/order.h"

namespace dkv::cpu {
namespace {

constexpr std::size_t kBlockKeys = 4096;  // Keys are made where L1 still has them for counting.

/// One head of one layer.
struct Standing {
    std::uint64_t above = 0;                // Keys known to be above the threshold.
    std::vector<std::uint32_t> candidates;  // Keys that share its digits so far: soon few.
};

/// The memory of one worker.
struct Scratch {
    std::array<float, kBlockKeys> scores;  // Scaled, where they are.
    std::array<std::uint32_t, kBlockKeys> keys;
    std::vector<std::uint32_t> candidates;  // [tokens + kKeysSlack]
    Histogram<std::uint64_t> histogram;
};

class Tally {
public:
    Tally(TallyArgs const& args, Workers& workers)
        : args_(args),
          workers_(workers),
          threshold_{.key = 0, .rank = args.total},
          standings_(args.counts.size()),
          scratch_(workers.count()) {}

    void run() {
        descend(kDigits[0], [this](std::size_t row, Scratch& scratch) {
            for_each_block(row, scratch, [&](std::span<std::uint32_t const> keys) {
                scratch.histogram.add(kDigits[0], keys);
            });
        });
        workers_.for_each(standings_.size(), [this](std::size_t row, std::size_t worker) {
            collect(row, scratch_[worker]);
        });
        for (std::size_t i = 1; i < kDigits.size(); ++i) {
            descend(kDigits[i], [this, i](std::size_t row, Scratch& scratch) {
                scratch.histogram.add(kDigits[i], standings_[row].candidates);
            });
            for (Standing& standing : standings_)
                narrow(kDigits[i], standing);
        }
        count();
    }

private:
    template <class Body>
    void for_each_block(std::size_t row, Scratch& scratch, Body const& body) const {
        std::size_t const layer = row / args_.heads;
        auto const scores =
            args_.layers[layer].subspan(row % args_.heads * args_.tokens, args_.tokens);
        for (std::size_t first = 0; first < scores.size(); first += kBlockKeys) {
            auto block = scores.subspan(first, std::min(kBlockKeys, scores.size() - first));
            if (!args_.scales.empty() || first < args_.skip)
                block = compared(block, layer, first, scratch.scores);
            make_keys(block, scratch.keys.data());
            body(std::span(scratch.keys).first(block.size()));
        }
    }

    /// What of this block, which begins at token `first`, is compared.
    std::span<float const> compared(std::span<float const> block,
                                    std::size_t layer,
                                    std::size_t first,
                                    std::span<float> out) const {
        float const scale = args_.scales.empty() ? 1.0F : args_.scales[layer];
        for (std::size_t i = 0; i < block.size(); ++i)
            out[i] = first + i < args_.skip ? 0.0F : block[i] * scale;
        return out.first(block.size());
    }

    /// `add(row, scratch)` adds a row's keys to its worker's histogram.
    template <class Add>
    void descend(Digit digit, Add const& add) {
        for (Scratch& scratch : scratch_)
            scratch.histogram = {};
        workers_.for_each(standings_.size(),
                          [&](std::size_t row, std::size_t worker) { add(row, scratch_[worker]); });
        for (std::size_t worker = 1; worker < scratch_.size(); ++worker)
            scratch_[0].histogram.add(scratch_[worker].histogram);
        threshold_.descend(digit, scratch_[0].histogram);
    }

    void collect(std::size_t row, Scratch& scratch) {
        scratch.candidates.resize(args_.tokens + kKeysSlack);
        std::size_t count = 0;
        for_each_block(row, scratch, [&](std::span<std::uint32_t const> keys) {
            count += collect_keys(keys, threshold_.key, threshold_.last(kDigits[0]),
                                  scratch.candidates.data() + count, standings_[row].above);
        });
        standings_[row].candidates.assign(
            scratch.candidates.begin(),
            scratch.candidates.begin() + static_cast<std::ptrdiff_t>(count));
    }

    /// Of the candidates, leaves those that share the threshold's digits down to this one.
    void narrow(Digit digit, Standing& standing) const {
        std::uint32_t const last = threshold_.last(digit);
        std::erase_if(standing.candidates, [&](std::uint32_t key) {
            standing.above += key > last;
            return key < threshold_.key || key > last;
        });
    }

    /// Layer after layer, head after head: the order in which ties are taken.
    void count() {
        for (std::size_t row = 0; row < standings_.size(); ++row) {
            std::uint64_t const equal =
                std::min<std::uint64_t>(standings_[row].candidates.size(), threshold_.rank);
            args_.counts[row] = standings_[row].above + equal;
            threshold_.rank -= equal;
        }
    }

    TallyArgs const& args_;
    Workers& workers_;
    Threshold threshold_;
    std::vector<Standing> standings_;  // [layers * heads]
    std::vector<Scratch> scratch_;     // [workers]
};

}  // namespace

Result<void> tally(TallyArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    std::uint64_t const scores = std::uint64_t{args.counts.size()} * args.tokens;
    if (args.total == 0 || args.total >= scores) {
        std::fill(args.counts.begin(), args.counts.end(), args.total == 0 ? 0 : args.tokens);
        return {};
    }
    Tally(args, workers).run();
    return {};
}

}  // namespace dkv::cpu
