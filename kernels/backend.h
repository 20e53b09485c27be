// The one seam between the host and the devices. No CUDA header is included here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

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

/// Bytes in a backend's memory, given back when this goes.
class BackendBuffer {
public:
    virtual ~BackendBuffer() = default;
    virtual std::span<std::byte> bytes() noexcept = 0;
};

/// One prompt, as far as it decides what memory its ops want beside the cache.
struct PromptSizes {
    Dtype dtype = Dtype::F32;
    std::uint32_t layers = 0;
    std::uint32_t q_heads = 0;
    std::uint32_t kv_heads = 0;
    std::uint32_t head_dim = 0;
    std::uint32_t tokens = 0;
    std::uint32_t window = 0;  ///< Of score and accumulate; 0: neither is called.
    bool accumulates = false;  ///< accumulate is called, of every query.
    GroupReduce reduce = GroupReduce::Mean;
    bool scores_keys = false;         ///< key_score is called.
    bool tallies = false;             ///< sum and tally are called, of all layers.
    std::uint32_t kernel = 0;         ///< pool's; 0: it is not called.
    std::uint64_t ids = 0;            ///< The most that one select gives, all heads together.
    std::uint64_t buffers_bytes = 0;  ///< What allocate() is asked for, as far as it lives at once.
};

/// Memory that is held ready; given up when this goes.
class BackendRoom {
public:
    virtual ~BackendRoom() = default;
};

/// An ordered queue of work on one device. Ops of one backend run in the order in which they were
/// called; on a device a call may return before the work is done, and results are there after
/// synchronize() or download(). Every span in the arguments is the backend's memory (on a CPU:
/// plain memory), but for lengths, offsets, `keep`, `counts`, `sums`, `scales` and `sink_logits`,
/// which are always the host's and read before the call returns. One thread at a time.
class Backend {
public:
    virtual ~Backend() = default;
    Backend(Backend const&) = delete;
    Backend& operator=(Backend const&) = delete;

    /// "cpu (avx512_bf16, 8 threads)": for people.
    virtual std::string_view name() const noexcept = 0;

    /// Zeroed, aligned to 64 bytes. Errors: LimitExceeded when there is not enough memory.
    virtual Result<std::unique_ptr<BackendBuffer>> allocate(std::size_t bytes) = 0;
    /// Room for a prompt: as long as it is held, its ops and its buffers find memory that is there
    /// already. A device has one pool for all prompts of an engine; a host has nothing to prepare,
    /// and returns nullptr. Errors: LimitExceeded when there is not enough memory.
    virtual Result<std::unique_ptr<BackendRoom>> make_room(PromptSizes const& /*sizes*/) {
        return std::unique_ptr<BackendRoom>();
    }
    /// `source` is the host's, and read before this returns.
    virtual Result<void> upload(std::span<std::byte const> source, std::span<std::byte> target) = 0;
    virtual Result<void> download(std::span<std::byte const> source,
                                  std::span<std::byte> target) = 0;

    virtual Result<void> score(ScoreArgs const& args) = 0;
    virtual Result<void> accumulate(AccumulateArgs const& args) = 0;
    virtual Result<void> key_score(KeyScoreArgs const& args) = 0;
    virtual Result<void> pool(PoolArgs const& args) = 0;
    virtual Result<void> select(SelectArgs const& args) = 0;
    virtual Result<void> sum(SumArgs const& args) = 0;
    virtual Result<void> surrogate(SurrogateArgs const& args) = 0;
    virtual Result<void> tally(TallyArgs const& args) = 0;
    virtual Result<void> gather(GatherArgs const& args) = 0;
    virtual Result<void> synchronize() = 0;

    /// Once `cancelled` is set, by any thread, the op under way ends after the tiles it is at, and
    /// it and each after it fail with Cancelled. nullptr: never. On a device, ops end by
    /// themselves.
    virtual void cancel_by(std::atomic<bool> const* /*cancelled*/) noexcept {}

protected:
    Backend() = default;
};

/// The embedded backend: always there, and the oracle for the others. `threads` 0: every core.
std::unique_ptr<Backend> make_cpu_backend(unsigned threads = 0);

struct CudaOptions {
    std::string device;            ///< UUID; empty: the thread's current device.
    std::uint64_t pool_bytes = 0;  ///< Device memory taken at once, and kept for reuse.
};

/// A stream of its own, of the lowest priority: the engine's work goes first where both run. Made,
/// used and destroyed by one thread, whose device it sets; so are its buffers, which may outlive
/// it. No op waits for the device; what an op finds wrong there (an id outside gather's source, a
/// block that does not exist) is the error of the next synchronize() or download(), and until then
/// no op writes rows or scores of keys. A device that failed fails every call with the first cause.
///
/// Errors: LimitExceeded when pool_bytes are missing; Unavailable without a driver or GPU;
/// Unsupported when this was built without CUDA; NotFound: no such device; Device.
Result<std::unique_ptr<Backend>> make_cuda_backend(CudaOptions const& options = {});

}  // namespace dkv
