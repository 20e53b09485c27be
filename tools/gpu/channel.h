// What two processes of dkv_gpu_ipc say to each other, over a pair of sockets.
#pragma once

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "protocol/base/fd_message.h"
#include "protocol/base/result.h"
#include "protocol/device/events.h"
#include "protocol/device/memory.h"

namespace dkv::gpu {

enum class Kind : std::uint32_t { Ipc, Vmm, Pool };

/// cuda::Exported but for its descriptor, and an event. The peer is this program: bytes as they
/// are.
struct Message {
    Kind kind;
    std::array<std::byte, 64> handle;
    cuda::EventHandle event;
    std::uint64_t allocation_bytes;
    std::uint64_t offset;
    std::uint64_t bytes;
    std::uint32_t generation;
    bool timeline;  ///< Whether the last 8 bytes become `generation`.
};

inline Error system_error(char const* call) {
    return {ErrorCode::Io, std::string(call) + ": " + std::strerror(errno)};
}

/// With `file` beside it, unless that is -1.
inline Result<void> send(int socket, Message const& message, int file) {
    auto const bytes = std::as_bytes(std::span(&message, 1));
    std::span<int const> const files(&file, file >= 0 ? 1 : 0);
    if (send_fds(socket, bytes, files) != sizeof message) return system_error("sendmsg");
    return {};
}

struct Received {
    Message message{};
    UniqueFd file;
};

/// Nothing at the end of what the peer sends.
inline Result<std::optional<Received>> receive(int socket) {
    Received received;
    auto got = receive_fds(socket, std::as_writable_bytes(std::span(&received.message, 1)));
    if (got.size == 0) return std::optional<Received>();
    if (got.size != sizeof received.message) return system_error("recvmsg");
    if (!got.fds.empty()) received.file = std::move(got.fds.front());
    return std::optional<Received>(std::move(received));
}

}  // namespace dkv::gpu
