#include "kernels/cuda/queue.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "protocol/base/assert.h"
#include "protocol/device/cuda_try.h"

namespace dkv::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::uint64_t kKeptLeast = std::uint64_t{64} << 20U;
// Of buffers and scratch, whose sizes the driver rounds.
constexpr std::uint64_t kRoomRounding = std::uint64_t{256} << 10U;
constexpr std::size_t kScratchLeast = std::size_t{1} << 20U;
constexpr std::size_t kChunkLeast = std::size_t{64} << 10U;
constexpr std::size_t kChunkMost = std::size_t{16} << 20U;
constexpr std::size_t kStagedMost = std::size_t{4} << 20U;

std::size_t rounded(std::size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

Error out_of_memory(std::uint64_t bytes) {
    return Error{ErrorCode::LimitExceeded,
                 "not enough device memory for " + std::to_string(bytes) + " bytes"};
}

/// In the words that the CPU backend has for it.
Error fault_error(Fault const& fault) {
    std::string const range = "not in [0, " + std::to_string(fault.limit) + ")";
    std::string const index = std::to_string(fault.index);
    std::string const id = std::to_string(fault.id);
    return Error{ErrorCode::InvalidArgument,
                 fault.kind == kBadBlock
                     ? "block " + index + " of the table is " + id + ", " + range
                     : "id " + id + " of head " + index + " is " + range};
}

}  // namespace

Result<std::unique_ptr<Queue>> Queue::create(std::uint64_t pool_bytes) {
    std::unique_ptr<Queue> queue(new Queue);
    DKV_TRY(queue->prepare(pool_bytes));
    return queue;
}

Result<void> Queue::prepare(std::uint64_t pool_bytes) {
    int lowest = 0;
    int highest = 0;
    DKV_CUDA_TRY(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    DKV_CUDA_TRY(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, lowest));

    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.handleTypes = cudaMemHandleTypeNone;
    properties.location.type = cudaMemLocationTypeDevice;
    DKV_CUDA_TRY(cudaGetDevice(&properties.location.id));
    DKV_CUDA_TRY(cudaMemPoolCreate(&pool_, &properties));
    pool_bytes_ = pool_bytes;
    DKV_TRY(keep_in_pool(pool_bytes));
    if (pool_bytes != 0) {
        void* const all = DKV_TRY(take(pool_bytes));
        DKV_CUDA_TRY(cudaFreeAsync(all, stream_));
    }
    fault_ = static_cast<Fault*>(DKV_TRY(take(sizeof(Fault))));
    DKV_CUDA_TRY(cudaMallocHost(reinterpret_cast<void**>(&fault_on_host_), sizeof(Fault)));
    DKV_CUDA_TRY(cudaMemsetAsync(fault_, 0, sizeof(Fault), stream_));
    // Page-locking memory may wait for the whole device: not in the first op.
    return next_chunk(kChunkLeast);
}

Queue::~Queue() {
    // An error here has no receiver: its work was reported before.
    for (void* const memory : outgrown_)
        static_cast<void>(cudaFreeAsync(memory, stream_));
    if (scratch_ != nullptr) static_cast<void>(cudaFreeAsync(scratch_, stream_));
    if (fault_ != nullptr) static_cast<void>(cudaFreeAsync(fault_, stream_));
    if (stream_ != nullptr) static_cast<void>(cudaStreamSynchronize(stream_));
    for (Chunk const& chunk : chunks_) {
        static_cast<void>(cudaFreeHost(chunk.data));
        if (chunk.passed != nullptr) static_cast<void>(cudaEventDestroy(chunk.passed));
    }
    if (fault_on_host_ != nullptr) static_cast<void>(cudaFreeHost(fault_on_host_));
    if (pool_ != nullptr) static_cast<void>(cudaMemPoolDestroy(pool_));
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    static_cast<void>(cudaGetLastError());
}

Result<void*> Queue::take(std::size_t bytes) {
    void* memory = nullptr;
    // Sizes that no pointer difference can have are not what drivers are asked for.
    if (bytes > PTRDIFF_MAX) return out_of_memory(bytes);
    auto const status =
        cudaMallocFromPoolAsync(&memory, std::max<std::size_t>(bytes, 1), pool_, stream_);
    if (status == cudaErrorMemoryAllocation) {
        static_cast<void>(cudaGetLastError());
        return out_of_memory(bytes);
    }
    DKV_CUDA_TRY(status);
    return memory;
}

/// What is free beyond this goes back to the device whenever the stream is waited for: the engine
/// is a better place for it.
Result<void> Queue::keep_in_pool(std::uint64_t bytes) {
    std::uint64_t keep = std::max(bytes, kKeptLeast);
    DKV_CUDA_TRY(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep));
    return {};
}

Result<void> Queue::hold(Room const& room) {
    if (room.scratch_bytes > PTRDIFF_MAX) return out_of_memory(room.scratch_bytes);
    if (room.buffers_bytes > PTRDIFF_MAX) return out_of_memory(room.buffers_bytes);
    rooms_.push_back(room);
    auto held = hold_all();
    if (!held) let_go(room);
    return held;
}

std::uint64_t Queue::buffers_wanted() const noexcept {
    std::uint64_t bytes = 0;
    for (Room const& room : rooms_)
        bytes += room.buffers_bytes + kRoomRounding;
    return bytes;
}

Result<void> Queue::hold_all() {
    std::uint64_t scratch = 0;
    for (Room const& room : rooms_)
        scratch = std::max(scratch, scratch_rounded(room.scratch_bytes));
    std::uint64_t const buffers = buffers_wanted();
    DKV_TRY(keep_in_pool(pool_bytes_ + scratch + buffers));
    if (scratch > scratch_size_) {
        // No op is under way: what is queued is done with the old one before it is freed.
        if (scratch_ != nullptr) DKV_CUDA_TRY(cudaFreeAsync(scratch_, stream_));
        scratch_ = nullptr;
        scratch_size_ = 0;
        begin();
        scratch_ = static_cast<std::byte*>(DKV_TRY(take(scratch)));
        scratch_size_ = scratch;
    }
    if (buffers > buffers_bytes_) {
        // The pool keeps what is freed, and cuts buffers from it.
        void* const rest = DKV_TRY(take(buffers - buffers_bytes_));
        DKV_CUDA_TRY(cudaFreeAsync(rest, stream_));
    }
    return {};
}

void Queue::let_go(Room const& room) noexcept {
    auto const found = std::find(rooms_.begin(), rooms_.end(), room);
    DKV_ASSERT(found != rooms_.end());
    rooms_.erase(found);
    if (rooms_.empty() && scratch_size_ > kScratchLeast) {
        static_cast<void>(cudaFreeAsync(std::exchange(scratch_, nullptr), stream_));
        scratch_size_ = 0;
        begin();
    }
    static_cast<void>(keep_in_pool(pool_bytes_ + scratch_size_ + buffers_wanted()));
    // Here the pool gives back; who waits next may be long in coming.
    static_cast<void>(cudaStreamSynchronize(stream_));
    static_cast<void>(cudaGetLastError());
}

Result<std::byte*> Queue::allocate(std::size_t bytes) {
    auto* const memory = static_cast<std::byte*>(DKV_TRY(take(bytes)));
    buffers_[memory] = bytes;
    buffers_bytes_ += bytes;
    buffers_bytes_high_ = std::max(buffers_bytes_high_, buffers_bytes_);
    if (bytes == 0) return memory;
    auto const status = cudaMemsetAsync(memory, 0, bytes, stream_);
    if (status != cudaSuccess) release(memory);
    DKV_CUDA_TRY(status);
    return memory;
}

void Queue::release(std::byte* data) noexcept {
    if (auto const known = buffers_.find(data); known != buffers_.end()) {
        buffers_bytes_ -= known->second;
        buffers_.erase(known);
    }
    static_cast<void>(cudaFreeAsync(data, stream_));
}

std::uint64_t Queue::scratch_rounded(std::uint64_t bytes) noexcept {
    return rounded(std::max<std::uint64_t>(bytes, 1));
}

Result<void*> Queue::scratch_bytes(std::size_t bytes) {
    if (op_bytes_ == 0) {  // Another op: what the one before had outgrown is behind it.
        for (void* const memory : std::exchange(outgrown_, {}))
            DKV_CUDA_TRY(cudaFreeAsync(memory, stream_));
    }
    if (bytes > PTRDIFF_MAX) return out_of_memory(bytes);
    std::size_t const want = scratch_rounded(bytes);
    if (scratch_used_ + want > scratch_size_) {
        // Room for all of this op: the next one like it needs no more.
        std::size_t const size = std::max(kScratchLeast, op_bytes_ + want);
        void* const grown = DKV_TRY(take(size));
        // Pointers that this op was handed are into the old one.
        if (scratch_ != nullptr) outgrown_.push_back(scratch_);
        scratch_ = static_cast<std::byte*>(grown);
        scratch_size_ = size;
        scratch_used_ = 0;
    }
    void* const result = scratch_ + scratch_used_;
    scratch_used_ += want;
    op_bytes_ += want;
    return result;
}

Result<std::byte*> Queue::stage(std::size_t bytes, bool awaited) {
    std::size_t const want = rounded(bytes);
    if (chunks_.empty() || chunks_.back().used + want > chunks_.back().bytes)
        DKV_TRY(next_chunk(want));
    Chunk& chunk = chunks_.back();
    std::byte* const result = chunk.data + chunk.used;
    chunk.used += want;
    chunk.awaited |= awaited;
    return result;
}

/// Puts a chunk with room for `bytes` last: one that all its copies have passed, or a new one.
Result<void> Queue::next_chunk(std::size_t bytes) {
    if (!chunks_.empty()) DKV_CUDA_TRY(cudaEventRecord(chunks_.back().passed, stream_));
    for (auto chunk = chunks_.begin(); chunk != chunks_.end(); ++chunk) {
        if (chunk->awaited || chunk->bytes < bytes) continue;
        auto const status = cudaEventQuery(chunk->passed);
        if (status == cudaErrorNotReady) {
            static_cast<void>(cudaGetLastError());
            continue;
        }
        DKV_CUDA_TRY(status);
        chunk->used = 0;
        std::rotate(chunk, chunk + 1, chunks_.end());
        return {};
    }
    std::size_t const twice = chunks_.empty() ? 0 : 2 * chunks_.back().bytes;
    Chunk& chunk = chunks_.emplace_back();
    auto const fill = [&]() -> Result<void> {
        std::size_t const size = std::max({kChunkLeast, bytes, std::min(twice, kChunkMost)});
        DKV_CUDA_TRY(cudaEventCreateWithFlags(&chunk.passed, cudaEventDisableTiming));
        DKV_CUDA_TRY(cudaMallocHost(reinterpret_cast<void**>(&chunk.data), size));
        chunk.bytes = size;
        return {};
    };
    auto filled = fill();
    if (!filled) {
        if (chunk.passed != nullptr) static_cast<void>(cudaEventDestroy(chunk.passed));
        chunks_.pop_back();
    }
    return filled;
}

/// Nothing is under way. One chunk is kept, the largest: the next round may fit in it.
Result<void> Queue::free_chunks() {
    auto const largest =
        std::max_element(chunks_.begin(), chunks_.end(),
                         [](Chunk const& a, Chunk const& b) { return a.bytes < b.bytes; });
    if (largest == chunks_.end()) return {};
    std::iter_swap(largest, chunks_.begin());
    chunks_.front().used = 0;
    chunks_.front().awaited = false;
    while (chunks_.size() > 1) {
        Chunk const chunk = chunks_.back();
        chunks_.pop_back();
        DKV_CUDA_TRY(cudaFreeHost(chunk.data));
        DKV_CUDA_TRY(cudaEventDestroy(chunk.passed));
    }
    return {};
}

Result<void const*> Queue::upload_bytes(std::span<std::byte const> host) {
    auto* const device = static_cast<std::byte*>(DKV_TRY(scratch_bytes(host.size())));
    DKV_TRY(upload(host, device));
    return static_cast<void const*>(device);
}

Result<void> Queue::upload(std::span<std::byte const> host, std::byte* device) {
    if (host.empty()) return {};
    if (host.size() > kStagedMost) {
        DKV_CUDA_TRY(
            cudaMemcpyAsync(device, host.data(), host.size(), cudaMemcpyHostToDevice, stream_));
        DKV_CUDA_TRY(cudaStreamSynchronize(stream_));
        return {};
    }
    std::byte* const staged = DKV_TRY(stage(host.size(), false));
    std::memcpy(staged, host.data(), host.size());
    DKV_CUDA_TRY(cudaMemcpyAsync(device, staged, host.size(), cudaMemcpyHostToDevice, stream_));
    return {};
}

Result<void> Queue::download_later_bytes(void const* device, std::span<std::byte> host) {
    if (host.empty()) return {};
    std::byte* const staged = DKV_TRY(stage(host.size(), true));
    DKV_CUDA_TRY(cudaMemcpyAsync(staged, device, host.size(), cudaMemcpyDeviceToHost, stream_));
    downloads_.push_back({staged, host});
    return {};
}

Result<void> Queue::synchronize() {
    // Taken first: after an error they may be gone.
    auto const downloads = std::exchange(downloads_, {});
    DKV_CUDA_TRY(
        cudaMemcpyAsync(fault_on_host_, fault_, sizeof(Fault), cudaMemcpyDeviceToHost, stream_));
    DKV_CUDA_TRY(cudaStreamSynchronize(stream_));
    for (Download const& download : downloads)
        std::memcpy(download.host.data(), download.staged, download.host.size());
    DKV_TRY(free_chunks());

    Fault const fault = *fault_on_host_;
    if (fault.kind == 0) return {};
    DKV_CUDA_TRY(cudaMemsetAsync(fault_, 0, sizeof(Fault), stream_));
    return fault_error(fault);
}

bool Queue::lost() const noexcept {
    auto const status = cudaStreamQuery(stream_);
    static_cast<void>(cudaGetLastError());
    return status != cudaSuccess && status != cudaErrorNotReady;
}

}  // namespace dkv::cuda
