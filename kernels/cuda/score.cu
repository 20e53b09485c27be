#include "kernels/cuda/ops.h"
#include "kernels/cuda/score_pass.h"

namespace dkv::cuda {

Result<void> score(ScoreArgs const& args, Queue& queue) {
    DKV_TRY(check(args));
    if (args.queries.place != Place::Device || args.keys.place != Place::Device)
        return Error{ErrorCode::InvalidArgument, "queries or keys are in host memory"};
    if (args.scores.empty()) return {};
    queue.begin();
    std::uint32_t const prefix = args.keys.tokens - args.queries.tokens;
    auto pass = DKV_TRY(Pass::plan(args.queries, args.keys, prefix, args.scale, args.softcap));
    DKV_TRY(check_blocks_later(args.keys, queue));
    DKV_TRY(pass.take_memory(queue, pass.needs(), args.sink_logits));
    DKV_TRY(pass.pack_queries(queue));
    float const share = 1.0F / static_cast<float>(args.queries.tokens);  // Sums become means.
    DKV_TRY(pass.statistics(queue, share));
    DKV_TRY(pass.join_sinks(queue, share));
    return pass.sums(queue, {.scores = args.scores.data(),
                             .mass = args.mass.empty() ? nullptr : args.mass.data(),
                             .peaks = args.peaks.empty() ? nullptr : args.peaks.data(),
                             .stride = prefix,
                             .columns = prefix,
                             .reduce = args.reduce,
                             .begun = 0,
                             .share = share});
}

}  // namespace dkv::cuda
