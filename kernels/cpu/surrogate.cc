#include <algorithm>
#include <string>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/surrogate_tiles.h"

namespace dkv::cpu {
namespace {

constexpr std::uint32_t kRangeTokens = 256;

}  // namespace

Result<void> surrogate(SurrogateArgs const& args, Workers& workers) {
    DKV_TRY(check(args));
    if (args.keys.place != Place::Host)
        return Error{ErrorCode::InvalidArgument, "keys are in device memory"};
    std::uint32_t const columns = args.keys.tokens - args.window;
    if (columns == 0) return {};

    std::size_t const heads = args.keys.heads;
    std::size_t const dim = args.keys.head_dim;
    std::size_t const of_head = surrogate_weights(heads, dim);
    std::size_t const own = surrogate_memory(heads, dim);
    std::size_t const floats = heads * of_head + workers.count() * own;
    float* const memory = workers.memory(floats);
    if (memory == nullptr)
        return Error{
            ErrorCode::LimitExceeded,
            "not enough memory for " + std::to_string(floats * sizeof(float)) + " bytes of rows"};
    std::fill_n(memory, floats, 0.0F);
    for (std::size_t head = 0; head < heads; ++head) {
        float const* from = args.weights.data() + head * surrogate_features(heads, dim);
        float* to = memory + head * of_head;
        for (std::size_t of = 0; of < 2 * heads; ++of, from += dim, to += surrogate_row(dim))
            std::copy_n(from, dim, to);
        std::copy_n(from, 2 * heads, to);
    }

    float* const mine = memory + heads * of_head;
    workers.for_each((columns + kRangeTokens - 1) / kRangeTokens,
                     [&](std::size_t item, std::size_t worker) {
                         auto const begin = static_cast<std::uint32_t>(item * kRangeTokens);
                         surrogate_scores(args, begin, std::min(columns, begin + kRangeTokens),
                                          memory, mine + worker * own);
                     });
    return {};
}

}  // namespace dkv::cpu
