// The ops on a CPU, each in a file of its own.
#pragma once

#include "kernels/cpu/workers.h"
#include "kernels/ops/accumulate.h"
#include "kernels/ops/gather.h"
#include "kernels/ops/key_score.h"
#include "kernels/ops/pool.h"
#include "kernels/ops/score.h"
#include "kernels/ops/select.h"
#include "kernels/ops/sum.h"
#include "kernels/ops/surrogate.h"
#include "kernels/ops/tally.h"

namespace dkv::cpu {

// Every op checks its arguments, and gives the same bits whatever the number of workers.
Result<void> score(ScoreArgs const& args, Workers& workers);
Result<void> accumulate(AccumulateArgs const& args, Workers& workers);
Result<void> key_score(KeyScoreArgs const& args, Workers& workers);
Result<void> pool(PoolArgs const& args, Workers& workers);
Result<void> select(SelectArgs const& args, Workers& workers);
Result<void> sum(SumArgs const& args, Workers& workers);
Result<void> surrogate(SurrogateArgs const& args, Workers& workers);
Result<void> tally(TallyArgs const& args, Workers& workers);
Result<void> gather(GatherArgs const& args, Workers& workers);

}  // namespace dkv::cpu
