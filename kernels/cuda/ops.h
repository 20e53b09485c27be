// The ops on a GPU, each in a file of its own with the stem of its CPU twin.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/cuda/queue.h"
#include "kernels/ops/accumulate.h"
#include "kernels/ops/gather.h"
#include "kernels/ops/key_score.h"
#include "kernels/ops/pool.h"
#include "kernels/ops/score.h"
#include "kernels/ops/select.h"
#include "kernels/ops/sum.h"
#include "kernels/ops/surrogate.h"
#include "kernels/ops/tally.h"

namespace dkv {
class Backend;
struct PromptSizes;
}  // namespace dkv

namespace dkv::cuda {

// Every op checks its arguments, enqueues on the queue's stream and returns without waiting.
Result<void> score(ScoreArgs const& args, Queue& queue);
Result<void> accumulate(AccumulateArgs const& args, Queue& queue);
Result<void> key_score(KeyScoreArgs const& args, Queue& queue);
Result<void> pool(PoolArgs const& args, Queue& queue);
Result<void> select(SelectArgs const& args, Queue& queue);
Result<void> sum(SumArgs const& args, Queue& queue);
Result<void> surrogate(SurrogateArgs const& args, Queue& queue);
Result<void> tally(TallyArgs const& args, Queue& queue);
Result<void> gather(GatherArgs const& args, Queue& queue);

/// The most scratch that one op of such a prompt asks its queue for, whatever its rows' strides.
/// Errors: those of Pass::plan().
Result<std::uint64_t> scratch_bytes(PromptSizes const& sizes);

/// Of accumulate alone.
Result<std::uint64_t> scratch_bytes(AccumulateArgs const& args);

/// The backend whose work is queued there.
std::unique_ptr<Backend> make_backend_on(std::shared_ptr<Queue> queue, std::string name);

}  // namespace dkv::cuda
