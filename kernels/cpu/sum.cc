#include <algorithm>
#include <cmath>

#include "kernels/cpu/ops.h"

namespace dkv::cpu {

Result<void> sum(SumArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    workers.for_each(args.heads, [&](std::size_t head, std::size_t) {
        auto const row = args.scores.subspan(head * args.tokens, args.tokens);
        double sum = 0;
        for (float const score : row.subspan(std::min(args.skip, args.tokens)))
            sum += std::isnan(score) ? 0.0 : double{score};
        args.sums[head] = sum;
    });
    return {};
}

}  // namespace dkv::cpu
