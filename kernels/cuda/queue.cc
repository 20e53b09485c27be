#include "kernels/cuda/queue.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "protocol/cuda/cuda_try.h"

namespace dkv::cuda {
namespace {

constexpr std::size_t kAlignment = 256;
constexpr std::size_t kScratchLeast = std::size_t{1} << 20U;
constexpr std::size_t kChunkLeast = std::size_t{64} << 10U;

std::size_t rounded(std::size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
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

Result<std::unique_ptr<Queue>> Queue::create() {
    std::unique_ptr<Queue> queue(new Queue);
    int lowest = 0;
    int highest = 0;
    DKV_CUDA_TRY(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    DKV_CUDA_TRY(cudaStreamCreateWithPriority(&queue->stream_, cudaStreamNonBlocking, lowest));
    DKV_CUDA_TRY(cudaMalloc(reinterpret_cast<void**>(&queue->fault_), sizeof(Fault)));
    DKV_CUDA_TRY(cudaMallocHost(reinterpret_cast<void**>(&queue->fault_on_host_), sizeof(Fault)));
    DKV_CUDA_TRY(cudaMemsetAsync(queue->fault_, 0, sizeof(Fault), queue->stream_));
    return queue;
}

Queue::~Queue() {
    // Nobody is left to tell: an error here is of work that was reported before.
    if (stream_ != nullptr) static_cast<void>(cudaStreamSynchronize(stream_));
    for (void* const old : retired_)
        static_cast<void>(cudaFree(old));
    static_cast<void>(cudaFree(scratch_));
    static_cast<void>(cudaFree(fault_));
    static_cast<void>(cudaFreeHost(fault_on_host_));
    for (Chunk const& chunk : chunks_)
        static_cast<void>(cudaFreeHost(chunk.data));
    if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
    static_cast<void>(cudaGetLastError());
}

Result<void*> Queue::scratch_bytes(std::size_t bytes) {
    std::size_t const want = rounded(std::max<std::size_t>(bytes, 1));
    if (scratch_used_ + want > scratch_size_) {
        std::size_t const size = std::max({kScratchLeast, 2 * scratch_size_, want});
        void* grown = nullptr;
        DKV_CUDA_TRY(cudaMallocAsync(&grown, size, stream_));
        // Kernels queued before, and pointers handed out in this op, still use the old one.
        if (scratch_ != nullptr) retired_.push_back(scratch_);
        scratch_ = static_cast<std::byte*>(grown);
        scratch_size_ = size;
        scratch_used_ = 0;
    }
    void* const result = scratch_ + scratch_used_;
    scratch_used_ += want;
    return result;
}

Result<std::byte*> Queue::pinned(std::size_t bytes) {
    std::size_t const want = rounded(bytes);
    if (chunks_.empty() || chunks_.back().used + want > chunks_.back().bytes) {
        std::size_t const size =
            std::max({kChunkLeast, want, chunks_.empty() ? 0 : 2 * chunks_.back().bytes});
        void* data = nullptr;
        DKV_CUDA_TRY(cudaMallocHost(&data, size));
        chunks_.push_back({static_cast<std::byte*>(data), size, 0});
    }
    Chunk& chunk = chunks_.back();
    std::byte* const result = chunk.data + chunk.used;
    chunk.used += want;
    return result;
}

Result<void const*> Queue::upload_bytes(std::span<std::byte const> host) {
    void* const device = DKV_TRY(scratch_bytes(host.size()));
    if (host.empty()) return static_cast<void const*>(device);
    std::byte* const staged = DKV_TRY(pinned(host.size()));
    std::memcpy(staged, host.data(), host.size());
    DKV_CUDA_TRY(cudaMemcpyAsync(device, staged, host.size(), cudaMemcpyHostToDevice, stream_));
    return static_cast<void const*>(device);
}

Result<void> Queue::download_later_bytes(void const* device, std::span<std::byte> host) {
    if (host.empty()) return {};
    std::byte* const staged = DKV_TRY(pinned(host.size()));
    DKV_CUDA_TRY(cudaMemcpyAsync(staged, device, host.size(), cudaMemcpyDeviceToHost, stream_));
    downloads_.push_back({staged, host});
    return {};
}

Result<void> Queue::synchronize() {
    DKV_CUDA_TRY(
        cudaMemcpyAsync(fault_on_host_, fault_, sizeof(Fault), cudaMemcpyDeviceToHost, stream_));
    DKV_CUDA_TRY(cudaStreamSynchronize(stream_));
    for (Download const& download : downloads_)
        std::memcpy(download.host.data(), download.pinned, download.host.size());
    downloads_.clear();
    for (void* const old : retired_)
        DKV_CUDA_TRY(cudaFreeAsync(old, stream_));
    retired_.clear();
    // One chunk that held everything is better than many that held a part each.
    if (chunks_.size() > 1) {
        for (auto chunk = chunks_.begin(); chunk != chunks_.end() - 1; ++chunk)
            DKV_CUDA_TRY(cudaFreeHost(chunk->data));
        chunks_.erase(chunks_.begin(), chunks_.end() - 1);
    }
    for (Chunk& chunk : chunks_)
        chunk.used = 0;

    Fault const fault = *fault_on_host_;
    if (fault.kind == 0) return {};
    DKV_CUDA_TRY(cudaMemsetAsync(fault_, 0, sizeof(Fault), stream_));
    return fault_error(fault);
}

}  // namespace dkv::cuda
