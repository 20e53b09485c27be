#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/order.h"

namespace dkv::cpu {
namespace {

using Histogram = std::array<std::uint64_t, kDigitValues>;

/// How one head of one layer stands to the threshold.
struct Standing {
    std::uint64_t above = 0;
    std::uint64_t equal = 0;
};

class Tally {
public:
    Tally(TallyArgs const& args, Workers& workers) : args_(args), workers_(workers) {}

    void run() {
        Threshold threshold{.key = 0, .rank = args_.total};
        for (Digit const digit : kDigits)
            threshold.descend(digit, histogram(digit, threshold.key));
        count(threshold);
    }

private:
    std::size_t rows() const noexcept { return args_.counts.size(); }

    std::span<float const> row(std::size_t index) const noexcept {
        return args_.layers[index / args_.heads].subspan(index % args_.heads * args_.tokens,
                                                         args_.tokens);
    }

    /// The digit's values among the scores that share the digits above it with `found`.
    Histogram histogram(Digit digit, std::uint32_t found) {
        std::vector<Histogram> parts(workers_.count(), Histogram{});
        workers_.for_each(rows(), [&](std::size_t index, std::size_t worker) {
            for (float const score : row(index)) {
                std::uint32_t const key = order_key(score);
                if (digit.above(key) == digit.above(found)) ++parts[worker][digit.of(key)];
            }
        });
        for (std::size_t worker = 1; worker < parts.size(); ++worker)
            std::transform(parts[0].begin(), parts[0].end(), parts[worker].begin(),
                           parts[0].begin(), std::plus<>());
        return parts[0];
    }

    void count(Threshold threshold) {
        std::vector<Standing> standings(rows());
        workers_.for_each(rows(), [&](std::size_t index, std::size_t /*worker*/) {
            Standing standing;
            for (float const score : row(index)) {
                std::uint32_t const key = order_key(score);
                standing.above += key > threshold.key;
                standing.equal += key == threshold.key;
            }
            standings[index] = standing;
        });
        // Layer after layer, head after head: the order in which ties are taken.
        for (std::size_t index = 0; index < rows(); ++index) {
            std::uint64_t const equal = std::min(standings[index].equal, threshold.rank);
            args_.counts[index] = standings[index].above + equal;
            threshold.rank -= equal;
        }
    }

    TallyArgs const& args_;
    Workers& workers_;
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
