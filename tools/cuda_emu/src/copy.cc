// Copies and fills, and kernel launches: what streams do.
#include <cstring>
#include <memory>
#include <vector>

#include "tools/cuda_emu/src/grid.h"
#include "tools/cuda_emu/src/memory.h"
#include "tools/cuda_emu/src/stream.h"

namespace cudaemu {
namespace {

/// Rows of `width` bytes; one row unless it is a 2D copy.
struct Rows {
    void* to;
    std::size_t to_pitch;
    void const* from;
    std::size_t from_pitch;
    std::size_t width;
    std::size_t height;

    std::size_t extent(std::size_t pitch) const { return pitch * (height - 1) + width; }
    void run() const {
        for (std::size_t row = 0; row < height; ++row)
            std::memcpy(static_cast<std::byte*>(to) + row * to_pitch,
                        static_cast<std::byte const*>(from) + row * from_pitch, width);
    }
};

enum class Side { Pageable, PageLocked, Device, Bad };

Side side_of(void const* address, std::size_t bytes) {
    Allocation const* const found = find(address);
    if (found == nullptr) return Side::Pageable;
    if (!is_covered(address, bytes)) return Side::Bad;
    return found->on_device() ? Side::Device : Side::PageLocked;
}

/// What the caller said agrees with where the pointers point. Page-locked memory is both.
bool agrees(cudaMemcpyKind kind, Side from, Side to) {
    if (from == Side::Bad || to == Side::Bad) return false;
    auto const host = [](Side side) { return side != Side::Device; };
    auto const device = [](Side side) { return side != Side::Pageable; };
    switch (kind) {
        case cudaMemcpyHostToHost: return host(from) && host(to);
        case cudaMemcpyHostToDevice: return host(from) && device(to);
        case cudaMemcpyDeviceToHost: return device(from) && host(to);
        case cudaMemcpyDeviceToDevice: return device(from) && device(to);
        case cudaMemcpyDefault: return true;
    }
    return false;
}

/// AsPlain: of a function without Async in its name.
enum class Return { WhenQueued, AsPlain };

/// Whether a copy is over when the call returns. Into pageable memory it always is. What else a
/// plain copy leaves for later is what CUDA leaves: the way from staged pageable memory to the
/// device, and copies within the device.
bool host_waits(Side from, Side to, Return when) {
    if (to == Side::Pageable) return true;
    return when == Return::AsPlain && (to != Side::Device || from == Side::PageLocked);
}

cudaError_t copy(Rows rows, cudaMemcpyKind kind, cudaStream_t handle, Return when) {
    return call([&](Lock& lock) {
        auto const stream = stream_of(handle);
        if (stream == nullptr) return cudaErrorInvalidResourceHandle;
        if (rows.width == 0 || rows.height == 0) return cudaSuccess;
        if (rows.height > 1 && (rows.to_pitch < rows.width || rows.from_pitch < rows.width))
            return cudaErrorInvalidValue;
        Side const from = side_of(rows.from, rows.extent(rows.from_pitch));
        Side const to = side_of(rows.to, rows.extent(rows.to_pitch));
        if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
            return cudaErrorInvalidMemcpyDirection;
        if (!agrees(kind, from, to)) return cudaErrorInvalidValue;
        bool const done = host_waits(from, to, when);
        std::shared_ptr<std::vector<std::byte>> staged;
        if (from == Side::Pageable && !done) {
            // Pageable memory is the caller's again when the call returns.
            staged = std::make_shared<std::vector<std::byte>>(rows.width * rows.height);
            Rows{staged->data(), rows.width, rows.from, rows.from_pitch, rows.width, rows.height}
                .run();
            rows.from = staged->data();
            rows.from_pitch = rows.width;
        }
        std::uint64_t const sequence =
            push(stream, lock, {.run = [rows, staged] { rows.run(); }, .after = {}, .ready = {}});
        if (done) finish(stream, sequence, lock);
        return cudaSuccess;
    });
}

cudaError_t fill(void* to,
                 std::size_t pitch,
                 int value,
                 std::size_t width,
                 std::size_t height,
                 cudaStream_t handle,
                 Return when) {
    return call([&](Lock& lock) {
        auto const stream = stream_of(handle);
        if (stream == nullptr) return cudaErrorInvalidResourceHandle;
        if (width == 0 || height == 0) return cudaSuccess;
        if (height > 1 && pitch < width) return cudaErrorInvalidValue;
        Side const side = side_of(to, pitch * (height - 1) + width);
        if (side == Side::Pageable || side == Side::Bad) return cudaErrorInvalidValue;
        std::uint64_t const sequence =
            push(stream, lock,
                 {.run =
                      [=] {
                          for (std::size_t row = 0; row < height; ++row)
                              std::memset(static_cast<std::byte*>(to) + row * pitch, value, width);
                      },
                  .after = {},
                  .ready = {}});
        if (when == Return::AsPlain && side != Side::Device) finish(stream, sequence, lock);
        return cudaSuccess;
    });
}

}  // namespace

cudaError_t launch(cudaLaunchConfig_t const& config,
                   void const* kernel,
                   std::function<void()> body) {
    return call([&](Lock& lock) {
        auto const stream = stream_of(config.stream);
        if (stream == nullptr) return cudaErrorInvalidResourceHandle;
        if (cudaError_t const refused = check_launch(config, kernel); refused != cudaSuccess)
            return refused;
        push(stream, lock,
             {.run = [config, kernel, body = std::move(body)] { run_grid(config, kernel, body); },
              .after = {},
              .ready = {}});
        return cudaSuccess;
    });
}

cudaError_t copy_symbol(void* to, void const* from, std::size_t bytes, cudaStream_t handle) {
    return call([&](Lock& lock) {
        auto const stream = stream_of(handle);
        std::uint64_t const sequence = push(
            stream, lock, {.run = [=] { std::memcpy(to, from, bytes); }, .after = {}, .ready = {}});
        finish(stream, sequence, lock);
        return cudaSuccess;
    });
}

}  // namespace cudaemu

using namespace cudaemu;

extern "C" {

cudaError_t cudaMemcpy(void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind) {
    return copy({to, bytes, from, bytes, bytes, 1}, kind, nullptr, Return::AsPlain);
}
cudaError_t cudaMemcpyAsync(
    void* to, void const* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return copy({to, bytes, from, bytes, bytes, 1}, kind, stream, Return::WhenQueued);
}
cudaError_t cudaMemcpyPeerAsync(void* to,
                                int /*to_device*/,
                                void const* from,
                                int /*from_device*/,
                                std::size_t bytes,
                                cudaStream_t stream) {
    return copy({to, bytes, from, bytes, bytes, 1}, cudaMemcpyDeviceToDevice, stream,
                Return::WhenQueued);
}
cudaError_t cudaMemcpy2D(void* to,
                         std::size_t to_pitch,
                         void const* from,
                         std::size_t from_pitch,
                         std::size_t width,
                         std::size_t height,
                         cudaMemcpyKind kind) {
    return copy({to, to_pitch, from, from_pitch, width, height}, kind, nullptr, Return::AsPlain);
}
cudaError_t cudaMemcpy2DAsync(void* to,
                              std::size_t to_pitch,
                              void const* from,
                              std::size_t from_pitch,
                              std::size_t width,
                              std::size_t height,
                              cudaMemcpyKind kind,
                              cudaStream_t stream) {
    return copy({to, to_pitch, from, from_pitch, width, height}, kind, stream, Return::WhenQueued);
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
    return fill(to, bytes, value, bytes, 1, nullptr, Return::AsPlain);
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
    return fill(to, bytes, value, bytes, 1, stream, Return::WhenQueued);
}
cudaError_t cudaMemset2DAsync(void* to,
                              std::size_t pitch,
                              int value,
                              std::size_t width,
                              std::size_t height,
                              cudaStream_t stream) {
    return fill(to, pitch, value, width, height, stream, Return::WhenQueued);
}

}  // extern "C"
