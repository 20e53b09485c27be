// What interprocess events are made of: a page of counters that the processes share.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "tools/cuda_emu/src/memory.h"

namespace cudaemu {

/// One event: `recorded` counts cudaEventRecord calls, `completed` is the last of them that has
/// happened, `wanted` the last that a waiter asked for: a lazy stream then runs up to it.
struct BoardSlot {
    std::atomic<std::uint64_t> recorded;
    std::atomic<std::uint64_t> completed;
    std::atomic<std::uint64_t> wanted;
    std::atomic<std::uint64_t> used;
};

struct Board {
    static constexpr std::size_t kSlots = 4096;
    std::atomic<std::uint32_t> doorbell;
    BoardSlot slots[kSlots];
};

/// Another process's board, or this one's own; unmapped when no event is left of it.
class MappedBoard {
public:
    static std::shared_ptr<MappedBoard> map(std::shared_ptr<MemoryFile> file);
    ~MappedBoard();
    MappedBoard(MappedBoard const&) = delete;
    MappedBoard& operator=(MappedBoard const&) = delete;
    Board& operator*() const { return *board_; }
    Board* operator->() const { return board_; }
    int descriptor() const { return file_->descriptor(); }

private:
    MappedBoard(Board* board, std::shared_ptr<MemoryFile> file)
        : board_(board), file_(std::move(file)) {}
    Board* board_;
    std::shared_ptr<MemoryFile> file_;
};

}  // namespace cudaemu
