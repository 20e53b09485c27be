#include "tools/cuda_emu/src/stream.h"

#include <algorithm>
#include <thread>
#include <unordered_map>

#include "tools/cuda_emu/src/capture.h"
#include "tools/cuda_emu/src/memory.h"
#include "tools/cuda_emu/src/pump.h"

struct CUstream_st {
    std::shared_ptr<cudaemu::Stream> stream;
};

namespace cudaemu {
namespace {

// How often what another process must do first is looked at again.
constexpr std::chrono::microseconds kPollInterval{50};

struct Streams {
    std::vector<std::shared_ptr<Stream>> all;  // Until their work is done, destroyed or not.
    std::unordered_map<CUstream_st*, std::shared_ptr<Stream>> by_handle;
    std::shared_ptr<Stream> legacy = std::make_shared<Stream>();
    std::uint64_t next_id = 1;
};
Streams& streams() {
    static Streams& the_streams = *new Streams;
    return the_streams;
}

bool is_blocking(Stream const& stream) {
    return (stream.flags & cudaStreamNonBlocking) == 0;
}

/// The default stream and the blocking ones wait for each other.
void add_default_order(std::shared_ptr<Stream> const& stream, Work& work) {
    Streams& known = streams();
    if (stream == known.legacy) {
        for (auto const& other : known.all)
            if (is_blocking(*other) && other->done < other->pushed)
                work.after.push_back({other, other->pushed});
    } else if (is_blocking(*stream) && known.legacy->done < known.legacy->pushed) {
        work.after.push_back({known.legacy, known.legacy->pushed});
    }
}

void run_front(Stream& stream, Lock& lock) {
    Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    stream.running = true;
    if (work.on_host) {
        lock.unlock();
        work.run();
        lock.lock();
    } else {
        DeviceAccess const access;
        work.run();
    }
    stream.running = false;
    ++stream.done;
}

/// Waits a little for other threads, or processes.
void rest(Lock& lock) {
    lock.unlock();
    std::this_thread::sleep_for(kPollInterval);
    lock.lock();
}

}  // namespace

std::shared_ptr<Stream> stream_of(cudaStream_t handle) {
    Streams& known = streams();
    if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
        return known.legacy;
    auto const found = known.by_handle.find(handle);
    return found == known.by_handle.end() ? nullptr : found->second;
}

bool step(std::shared_ptr<Stream> const& stream, Lock& lock) {
    if (stream->running || stream->queue.empty()) return false;
    Work const& work = stream->queue.front();
    for (Dependency const& dependency : work.after)
        if (dependency.stream->done < dependency.sequence)
            return step(std::shared_ptr<Stream>(dependency.stream), lock);
    if (work.ready) {
        DeviceAccess const access;  // It may look at a word of device memory.
        if (!work.ready()) return false;
    }
    run_front(*stream, lock);
    return true;
}

std::shared_ptr<Stream> const& legacy_stream() {
    return streams().legacy;
}

std::uint64_t push(std::shared_ptr<Stream> const& stream, Lock& lock, Work work) {
    if (stream->capturing) return stream->done;
    add_default_order(stream, work);
    stream->queue.push_back(std::move(work));
    std::uint64_t const sequence = ++stream->pushed;
    if (!lazy_streams()) {
        while (step(stream, lock)) {
        }
        if (stream->done < sequence) pump(stream, 0);
    }
    return sequence;
}

void finish(std::shared_ptr<Stream> const& stream, std::uint64_t sequence, Lock& lock) {
    while (stream->done < sequence)
        if (!step(stream, lock)) rest(lock);
}

void finish_everything(Lock& lock) {
    auto const all = streams().all;
    for (auto const& stream : all)
        finish(stream, stream->pushed, lock);
    finish(streams().legacy, streams().legacy->pushed, lock);
}

std::vector<std::shared_ptr<Stream>> every_stream() {
    auto all = streams().all;
    all.push_back(streams().legacy);
    return all;
}

namespace {

void forget_finished() {
    Streams& known = streams();
    std::erase_if(known.all, [&](auto const& stream) {
        return stream->done == stream->pushed &&
               std::none_of(known.by_handle.begin(), known.by_handle.end(),
                            [&](auto const& entry) { return entry.second == stream; });
    });
}

cudaError_t create(cudaStream_t* handle, unsigned flags, int priority) {
    if (handle == nullptr || (flags & ~unsigned{cudaStreamNonBlocking}) != 0)
        return cudaErrorInvalidValue;
    Streams& known = streams();
    auto stream = std::make_shared<Stream>();
    stream->flags = flags;
    stream->priority = std::clamp(priority, -5, 0);
    stream->device = current_device();
    stream->id = known.next_id++;
    *handle = new CUstream_st{stream};
    known.by_handle[*handle] = stream;
    known.all.push_back(std::move(stream));
    return cudaSuccess;
}

/// `body` with the stream that the handle names.
template <class Body>
cudaError_t with_stream(cudaStream_t handle, Body body) {
    return call([&](Lock& lock) {
        auto const stream = stream_of(handle);
        return stream == nullptr ? cudaErrorInvalidResourceHandle : body(stream, lock);
    });
}
/// For calls that no graph can hold.
template <class Body>
cudaError_t asking_stream(cudaStream_t handle, Body body) {
    return with_stream(handle, [&](std::shared_ptr<Stream> const& stream, Lock& lock) {
        cudaError_t const met =
            stream->capturing ? cudaErrorStreamCaptureUnsupported : meet_captures();
        return met == cudaSuccess ? body(stream, lock) : met;
    });
}

}  // namespace
}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return call([&](Lock&) { return create(stream, cudaStreamDefault, 0); });
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return call([&](Lock&) { return create(stream, flags, 0); });
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
    return call([&](Lock&) { return create(stream, flags, priority); });
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return call([&](Lock&) {
        if (least != nullptr) *least = 0;
        if (greatest != nullptr) *greatest = -5;
        return cudaSuccess;
    });
}
// Returns at once; what is queued still runs.
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    if (handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
        return remember(cudaErrorInvalidResourceHandle);
    return with_stream(handle, [&](std::shared_ptr<Stream> const& stream, Lock& lock) {
        streams().by_handle.erase(handle);
        delete handle;
        while (step(stream, lock)) {
        }
        if (stream->done < stream->pushed) pump(stream, stream->pushed);
        forget_finished();
        return cudaSuccess;
    });
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    return asking_stream(handle, [](std::shared_ptr<Stream> const& stream, Lock& lock) {
        finish(stream, stream->pushed, lock);
        return cudaSuccess;
    });
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    return asking_stream(handle, [](std::shared_ptr<Stream> const& stream, Lock& lock) {
        if (stream->done < stream->pushed) step(stream, lock);
        return stream->done < stream->pushed ? cudaErrorNotReady : cudaSuccess;
    });
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
    return with_stream(handle, [&](std::shared_ptr<Stream> const& stream, Lock&) {
        *priority = stream->priority;
        return cudaSuccess;
    });
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
    return with_stream(handle, [&](std::shared_ptr<Stream> const& stream, Lock&) {
        *flags = stream->flags;
        return cudaSuccess;
    });
}
cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* ordinal) {
    return with_stream(handle, [&](std::shared_ptr<Stream> const& stream, Lock&) {
        *ordinal = stream->device;
        return cudaSuccess;
    });
}
cudaError_t cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
    return with_stream(handle, [&](std::shared_ptr<Stream> const& stream, Lock&) {
        *id = stream->id;
        return cudaSuccess;
    });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* argument) {
    return with_stream(handle, [&](std::shared_ptr<Stream> const& stream, Lock& lock) {
        push(stream, lock,
             {.run = [=] { function(argument); }, .after = {}, .ready = {}, .on_host = true});
        return cudaSuccess;
    });
}
cudaError_t cudaDeviceSynchronize() {
    return call_unsafe([](Lock& lock) {
        finish_everything(lock);
        return cudaSuccess;
    });
}

}  // extern "C"
