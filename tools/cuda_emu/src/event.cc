// Events, within a process and between two.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <thread>
#include <unistd.h>
#include <unordered_map>
#include <unordered_set>

#include <sys/mman.h>

#include "tools/cuda_emu/src/board.h"
#include "tools/cuda_emu/src/capture.h"
#include "tools/cuda_emu/src/memory.h"
#include "tools/cuda_emu/src/pump.h"
#include "tools/cuda_emu/src/stream.h"

struct CUevent_st {
    unsigned flags = 0;
    bool imported = false;
    int device = 0;
    // The last cudaEventRecord of this process.
    std::shared_ptr<cudaemu::Stream> stream;
    std::uint64_t sequence = 0;
    std::shared_ptr<std::chrono::steady_clock::time_point> time;
    // Interprocess events.
    std::shared_ptr<cudaemu::MappedBoard> board;
    std::size_t slot_index = 0;
    /// Recorded here: board count -> stream's sequence, of the last few.
    std::uint64_t record_count = 0;
};

namespace cudaemu {

std::shared_ptr<MappedBoard> MappedBoard::map(std::shared_ptr<MemoryFile> file) {
    void* const memory =
        ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED, file->descriptor(), 0);
    if (memory == MAP_FAILED) return nullptr;
    return std::shared_ptr<MappedBoard>(
        new MappedBoard(static_cast<Board*>(memory), std::move(file)));
}

MappedBoard::~MappedBoard() {
    ::munmap(board_, sizeof(Board));
}

namespace {

struct EventHandle {
    char magic[8];
    pid_t process;
    int descriptor;
    std::uint64_t slot;
};
static_assert(sizeof(EventHandle) <= sizeof(cudaIpcEventHandle_t));
constexpr char kEventMagic[8] = "emevent";

struct Events {
    std::unordered_set<CUevent_st*> living;
    std::shared_ptr<MappedBoard> own;
};
Events& events() {
    static Events& the_events = *new Events;
    return the_events;
}

BoardSlot& slot_of(CUevent_st const& event) {
    return (*event.board)->slots[event.slot_index];
}

/// What other processes wait for becomes what the pump runs.
void look_at_own_board() {
    for (CUevent_st* const event : events().living) {
        if (event->board == nullptr || event->stream == nullptr) continue;
        BoardSlot const& slot = slot_of(*event);
        if (slot.wanted.load() > slot.completed.load() && event->stream->wanted < event->sequence) {
            event->stream->wanted = event->sequence;
            event->stream->wanted_since = {};  // At once.
        }
    }
}

cudaError_t take_slot(CUevent_st& event) {
    Events& known = events();
    if (known.own == nullptr) {
        auto file = MemoryFile::create(rounded(sizeof(Board), page_bytes()));
        known.own = file == nullptr ? nullptr : MappedBoard::map(std::move(file));
        if (known.own == nullptr) return cudaErrorMemoryAllocation;
        start_pump((*known.own)->doorbell, look_at_own_board);
    }
    for (std::size_t i = 0; i < Board::kSlots; ++i) {
        BoardSlot& slot = (*known.own)->slots[i];
        std::uint64_t expected = 0;
        if (!slot.used.compare_exchange_strong(expected, 1)) continue;
        slot.completed = slot.recorded.load();
        event.board = known.own;
        event.slot_index = i;
        return cudaSuccess;
    }
    return cudaErrorMemoryAllocation;
}

cudaError_t create(cudaEvent_t* result, unsigned flags) {
    constexpr unsigned kKnown =
        cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
    if (result == nullptr || (flags & ~kKnown) != 0) return cudaErrorInvalidValue;
    bool const shared = (flags & cudaEventInterprocess) != 0;
    if (shared && (flags & cudaEventDisableTiming) == 0) return cudaErrorInvalidValue;
    auto event = std::make_unique<CUevent_st>();
    event->flags = flags;
    event->device = current_device();
    if (shared)
        if (cudaError_t const error = take_slot(*event); error != cudaSuccess) return error;
    *result = event.release();
    events().living.insert(*result);
    return cudaSuccess;
}

template <class Body>
cudaError_t with_event(cudaEvent_t event, Body body) {
    return call([&](Lock& lock) {
        return events().living.contains(event) ? body(*event, lock)
                                               : cudaErrorInvalidResourceHandle;
    });
}

/// An event that was never recorded has happened.
bool has_happened(CUevent_st const& event) {
    if (event.board != nullptr) {
        BoardSlot const& slot = slot_of(event);
        return slot.completed.load() >= slot.recorded.load();
    }
    return event.stream == nullptr || event.stream->done >= event.sequence;
}

/// Asks the process that recorded a shared event to run up to it.
void want(MappedBoard const& board, std::size_t index, std::uint64_t count) {
    BoardSlot& slot = (*board).slots[index];
    std::uint64_t before = slot.wanted.load();
    while (before < count && !slot.wanted.compare_exchange_weak(before, count)) {
    }
    if (before < count) ring((*board).doorbell);
}

/// One step towards it: of the stream that it was recorded on, or by asking its process.
bool advance(CUevent_st& event, Lock& lock) {
    if (event.stream != nullptr && event.stream->done < event.sequence)
        return step(event.stream, lock);
    if (event.board != nullptr)
        want(*event.board, event.slot_index, slot_of(event).recorded.load());
    return false;
}

cudaError_t record(CUevent_st& event, std::shared_ptr<Stream> const& stream, Lock& lock) {
    // The default stream is the current device's.
    int const device = stream == legacy_stream() ? current_device() : stream->device;
    if (event.device != device) return cudaErrorInvalidResourceHandle;
    if (stream->capturing)
        return cudaSuccess;  // It marks a place in the graph, and stays as it is.
    auto const time = std::make_shared<std::chrono::steady_clock::time_point>();
    auto const board = event.board;
    std::size_t const index = event.slot_index;
    std::uint64_t const count = board == nullptr ? 0 : slot_of(event).recorded.fetch_add(1) + 1;
    event.time = time;
    event.stream = stream;
    event.sequence = stream->pushed + 1;
    push(stream, lock,
         {.run =
              [=] {
                  *time = std::chrono::steady_clock::now();
                  if (board == nullptr) return;
                  std::atomic<std::uint64_t>& completed = (*board)->slots[index].completed;
                  std::uint64_t before = completed.load();
                  while (before < count && !completed.compare_exchange_weak(before, count)) {
                  }
              },
          .after = {},
          .ready = {}});
    return cudaSuccess;
}

cudaError_t wait(std::shared_ptr<Stream> const& stream, CUevent_st& event, Lock& lock) {
    Work work{.run = [] {}, .after = {}, .ready = {}};
    bool const here = event.stream != nullptr && event.stream->done < event.sequence;
    if (here && event.stream != stream) work.after.push_back({event.stream, event.sequence});
    if (!here && event.board != nullptr && !has_happened(event)) {
        auto const board = event.board;
        std::size_t const index = event.slot_index;
        std::uint64_t const count = slot_of(event).recorded.load();
        work.ready = [=] {
            if ((*board)->slots[index].completed.load() >= count) return true;
            want(*board, index, count);
            return false;
        };
    }
    push(stream, lock, std::move(work));
    return cudaSuccess;
}

cudaError_t open_event(cudaEvent_t* result, cudaIpcEventHandle_t const& wire) {
    EventHandle handle;
    std::memcpy(&handle, &wire, sizeof handle);
    if (result == nullptr || std::memcmp(handle.magic, kEventMagic, sizeof kEventMagic) != 0 ||
        handle.slot >= Board::kSlots)
        return cudaErrorInvalidValue;
    if (handle.process == ::getpid()) return cudaErrorDeviceUninitialized;
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.process, handle.descriptor);
    int const descriptor = ::open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0) return cudaErrorInvalidResourceHandle;
    auto board = MappedBoard::map(MemoryFile::adopt(descriptor));
    if (board == nullptr) return cudaErrorMapBufferObjectFailed;
    auto event = std::make_unique<CUevent_st>();
    event->flags = cudaEventDisableTiming;
    event->imported = true;
    event->device = current_device();
    event->board = std::move(board);
    event->slot_index = handle.slot;
    *result = event.release();
    events().living.insert(*result);
    return cudaSuccess;
}

}  // namespace
}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

cudaError_t cudaEventCreate(cudaEvent_t* event) {
    return call([&](Lock&) { return create(event, cudaEventDefault); });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    return call([&](Lock&) { return create(event, flags); });
}
// Returns at once; what was recorded still happens.
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    return with_event(handle, [&](CUevent_st& event, Lock&) {
        if (event.board != nullptr && !event.imported) {
            if (event.stream != nullptr && event.stream->done < event.sequence)
                pump(event.stream, event.sequence);
            slot_of(event).used = 0;
        }
        events().living.erase(handle);
        delete handle;
        return cudaSuccess;
    });
}
cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle) {
    return with_event(handle, [&](CUevent_st& event, Lock& lock) {
        auto const stream = stream_of(stream_handle);
        return stream == nullptr ? cudaErrorInvalidResourceHandle : record(event, stream, lock);
    });
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream, unsigned flags) {
    if (flags != 0) return remember(cudaErrorNotSupported);
    return cudaEventRecord(handle, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t handle) {
    return with_event(handle, [](CUevent_st& event, Lock& lock) {
        if (cudaError_t const met = meet_captures(); met != cudaSuccess) return met;
        if (!has_happened(event)) advance(event, lock);
        return has_happened(event) ? cudaSuccess : cudaErrorNotReady;
    });
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    while (true) {
        cudaError_t const status = with_event(handle, [](CUevent_st& event, Lock& lock) {
            if (cudaError_t const met = meet_captures(); met != cudaSuccess) return met;
            while (!has_happened(event) && advance(event, lock)) {
            }
            return has_happened(event) ? cudaSuccess : cudaErrorNotReady;
        });
        if (status != cudaErrorNotReady) return status;
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned flags) {
    return with_event(handle, [&](CUevent_st& event, Lock& lock) {
        auto const stream = stream_of(stream_handle);
        if (stream == nullptr) return cudaErrorInvalidResourceHandle;
        return flags != 0 ? cudaErrorNotSupported : wait(stream, event, lock);
    });
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    return with_event(begin, [&](CUevent_st& first, Lock&) {
        if (!events().living.contains(end)) return cudaErrorInvalidResourceHandle;
        if (((first.flags | end->flags) & cudaEventDisableTiming) != 0 || first.time == nullptr ||
            end->time == nullptr)
            return cudaErrorInvalidResourceHandle;
        if (!has_happened(first) || !has_happened(*end)) return cudaErrorNotReady;
        *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *first.time).count();
        return cudaSuccess;
    });
}
cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t* result, cudaEvent_t handle) {
    return with_event(handle, [&](CUevent_st& event, Lock&) {
        if (result == nullptr) return cudaErrorInvalidValue;
        if (event.board == nullptr || event.imported) return cudaErrorInvalidResourceHandle;
        EventHandle wire{};
        std::memcpy(wire.magic, kEventMagic, sizeof kEventMagic);
        wire.process = ::getpid();
        wire.descriptor = event.board->descriptor();
        wire.slot = event.slot_index;
        *result = {};
        std::memcpy(result, &wire, sizeof wire);
        return cudaSuccess;
    });
}
cudaError_t cudaIpcOpenEventHandle(cudaEvent_t* event, cudaIpcEventHandle_t handle) {
    return call([&](Lock&) { return open_event(event, handle); });
}

}  // extern "C"
