// What every op of the CUDA backend works with: a stream, and memory that lives as long as what is
// queued on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include <cuda_runtime_api.h>

#include "protocol/base/result.h"

namespace dkv::cuda {

/// What a kernel found wrong in its data. Zeroed by synchronize(), which turns it into an Error.
struct Fault {
    std::uint32_t kind = 0;  ///< 0: nothing; else one of those below.
    std::uint32_t limit = 0;
    std::uint32_t index = 0;
    std::int32_t id = 0;
};
inline constexpr std::uint32_t kBadId = 1;     ///< id of head `index` is not in [0, limit).
inline constexpr std::uint32_t kBadBlock = 2;  ///< Entry `index` of a block table, likewise.

/// One thread at a time. Ops enqueue and return; nothing here waits but synchronize() and an
/// upload() of very much.
class Queue {
public:
    /// A pool of device memory of this queue's own; `pool_bytes` of it are there from the start and
    /// stay there, so that no op waits for the driver to find memory.
    ///
    /// Errors: LimitExceeded when pool_bytes are missing; Device.
    static Result<std::unique_ptr<Queue>> create(std::uint64_t pool_bytes);
    ~Queue();
    Queue(Queue const&) = delete;
    Queue& operator=(Queue const&) = delete;

    cudaStream_t stream() const noexcept { return stream_; }

    /// Scratch and buffers of one prompt.
    struct Room {
        std::uint64_t scratch_bytes = 0;  ///< Of its largest op.
        std::uint64_t buffers_bytes = 0;  ///< Of what it allocates, as far as it lives at once.
        bool operator==(Room const&) const = default;
    };
    /// Has the pool hold a prompt's memory, beside that of the others: then nothing that they ask
    /// for waits for the driver. Between ops. Errors: LimitExceeded; Device.
    Result<void> hold(Room const& room);
    /// A room that hold() was given. What the pool has beyond the others' goes back to the device.
    void let_go(Room const& room) noexcept;

    /// Device memory, zeroed, 256-byte aligned. Errors: LimitExceeded; Device.
    Result<std::byte*> allocate(std::size_t bytes);
    /// The most of it that there has been at once.
    std::uint64_t buffers_bytes_high() const noexcept { return buffers_bytes_high_; }
    /// Behind what is queued: that may still use it.
    void release(std::byte* data) noexcept;

    /// Begins an op: scratch() starts anew. What the op before it used may still be in use on the
    /// stream; the stream's order makes taking it again safe.
    void begin() noexcept { scratch_used_ = op_bytes_ = 0; }

    /// What `bytes` of scratch take.
    static std::uint64_t scratch_rounded(std::uint64_t bytes) noexcept;
    /// What the op under way, or the last one, was handed.
    std::uint64_t op_bytes() const noexcept { return op_bytes_; }

    /// `count` elements of device memory, not zeroed, 256-byte aligned, until the next begin().
    /// Grows; when it has to, stream-ordered, so that nothing waits.
    template <class T>
    Result<T*> scratch(std::size_t count) {
        return static_cast<T*>(DKV_TRY(scratch_bytes(count * sizeof(T))));
    }

    /// A device copy of a small host array, until the next begin(). The array is read before this
    /// returns.
    template <class T>
    Result<T const*> upload(std::span<T const> host) {
        static_assert(std::is_trivially_copyable_v<T>);
        return static_cast<T const*>(DKV_TRY(upload_bytes(std::as_bytes(host))));
    }

    /// `host` is read before this returns, whatever kind of memory it is. Waits for the stream when
    /// it is more than may be staged.
    Result<void> upload(std::span<std::byte const> host, std::byte* device);

    /// Has `host` filled from `device` when synchronize() returns. `host` must live until then.
    template <class T>
    Result<void> download_later(T const* device, std::span<T> host) {
        static_assert(std::is_trivially_copyable_v<T>);
        return download_later_bytes(device, std::as_writable_bytes(host));
    }

    cudaMemPool_t pool() const noexcept { return pool_; }

    /// Where kernels leave what they found wrong: device memory, for atomicCAS on `kind`.
    Fault* fault() const noexcept { return fault_; }

    /// Waits for the stream. Errors: Device; InvalidArgument from a Fault.
    Result<void> synchronize();

    /// Whether the device refuses everything from now on, as CUDA does after a failed kernel.
    bool lost() const noexcept;

private:
    Queue() = default;
    Result<void> prepare(std::uint64_t pool_bytes);
    Result<void> keep_in_pool(std::uint64_t bytes);
    Result<void> hold_all();
    /// By all rooms together.
    std::uint64_t buffers_wanted() const noexcept;
    Result<void*> take(std::size_t bytes);
    Result<void*> scratch_bytes(std::size_t bytes);
    Result<void const*> upload_bytes(std::span<std::byte const> host);
    Result<void> download_later_bytes(void const* device, std::span<std::byte> host);

    /// Page-locked memory that copies on the stream read or write.
    struct Chunk {
        std::byte* data = nullptr;
        std::size_t bytes = 0;
        std::size_t used = 0;
        cudaEvent_t passed = nullptr;  ///< Behind the last copy, once the chunk is full.
        bool awaited = false;          ///< Has what synchronize() is to hand out.
    };
    Result<std::byte*> stage(std::size_t bytes, bool awaited);
    Result<void> next_chunk(std::size_t bytes);
    Result<void> free_chunks();

    struct Download {
        std::byte const* staged;
        std::span<std::byte> host;
    };

    cudaStream_t stream_ = nullptr;
    cudaMemPool_t pool_ = nullptr;
    std::uint64_t pool_bytes_ = 0;  // For callers without a room.
    std::vector<Room> rooms_;
    std::unordered_map<std::byte*, std::uint64_t> buffers_;  // What allocate() gave: bytes.
    std::uint64_t buffers_bytes_ = 0;
    std::uint64_t buffers_bytes_high_ = 0;
    std::byte* scratch_ = nullptr;
    std::size_t scratch_size_ = 0;
    std::size_t scratch_used_ = 0;
    std::size_t op_bytes_ = 0;     // What this op was handed, of what is outgrown too.
    std::vector<void*> outgrown_;  // Scratch that this op may still use.
    std::vector<Chunk> chunks_;    // The last one is being filled.
    std::vector<Download> downloads_;
    Fault* fault_ = nullptr;
    Fault* fault_on_host_ = nullptr;
};

}  // namespace dkv::cuda
