// dkv_gpu_ipc: two processes, one device buffer. This process, in the engine's place, writes rows
// and records an event; a second one, in the sidecar's, opens the memory by what was sent, waits
// for the event, gathers rows out of it without a copy in between, and writes an answer into it.
// Once for each kind of memory that this device can share.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unistd.h>
#include <vector>

#include <sys/socket.h>
#include <sys/wait.h>

#include "kernels/backend.h"
#include "protocol/cuda/copy.h"
#include "protocol/cuda/device.h"
#include "protocol/cuda/events.h"
#include "protocol/cuda/memory.h"

namespace {

using namespace dkv;

constexpr int kNoDevice = 77;
constexpr std::uint64_t kBytes = std::uint64_t{4} << 20U;
constexpr std::uint64_t kOffset = 64 << 10U;  // Allocators hand out parts of allocations.
constexpr std::uint64_t kShared = kBytes - 2 * kOffset;
constexpr std::uint32_t kRowBytes = 256;
constexpr std::uint32_t kRows = kShared / kRowBytes;
constexpr auto kPatience = std::chrono::seconds(20);

enum class Kind : std::uint32_t { Ipc, Vmm };

struct Message {
    Kind kind;
    std::array<std::byte, 64> handle;
    cuda::EventHandle event;
    std::uint64_t allocation_bytes;
    std::uint64_t offset;
    std::uint64_t bytes;
    std::uint32_t generation;
};

std::byte pattern(std::uint64_t at, std::uint32_t seed) {
    return static_cast<std::byte>(at * 131 + at / kRowBytes * 7 + seed);
}

Error system_error(char const* call) {
    return {ErrorCode::Io, std::string(call) + ": " + std::strerror(errno)};
}

Result<void> send(int socket, Message const& message, int file) {
    Message copy = message;
    iovec part{&copy, sizeof copy};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> space{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    if (file >= 0) {
        header.msg_control = space.data();
        header.msg_controllen = space.size();
        cmsghdr* const control = CMSG_FIRSTHDR(&header);
        control->cmsg_level = SOL_SOCKET;
        control->cmsg_type = SCM_RIGHTS;
        control->cmsg_len = CMSG_LEN(sizeof(int));
        std::memcpy(CMSG_DATA(control), &file, sizeof file);
    }
    if (::sendmsg(socket, &header, MSG_NOSIGNAL) != sizeof copy) return system_error("sendmsg");
    return {};
}

/// False at the end of what the peer sends.
Result<bool> receive(int socket, Message& message, UniqueFd& file) {
    iovec part{&message, sizeof message};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> space{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = space.data();
    header.msg_controllen = space.size();
    auto const got = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    if (got == 0) return false;
    if (got != sizeof message) return system_error("recvmsg");
    if (cmsghdr const* const control = CMSG_FIRSTHDR(&header)) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(control), sizeof fd);
        file = UniqueFd(fd);
    }
    return true;
}

// --- the second process ---

Result<void> check_rows(Backend& backend, std::span<std::byte> rows, std::uint32_t seed) {
    std::vector<std::int32_t> ids;  // Every seventh, backwards.
    for (std::int64_t row = kRows - 1; row >= 0; row -= 7)
        ids.push_back(static_cast<std::int32_t>(row));
    auto const id_bytes = std::as_bytes(std::span(ids));
    auto const on_device = DKV_TRY(backend.allocate(id_bytes.size()));
    DKV_TRY(backend.upload(id_bytes, on_device->bytes()));
    auto const out = DKV_TRY(backend.allocate(ids.size() * kRowBytes));

    std::uint32_t const length = static_cast<std::uint32_t>(ids.size());
    std::uint64_t const offset = 0;
    GatherArgs args;
    args.source = dense_rows(rows.data(), Dtype::F16, 1, kRows, kRowBytes / 2);
    args.source.place = Place::Device;
    args.ids = {reinterpret_cast<std::int32_t const*>(on_device->bytes().data()), ids.size()};
    args.lengths = {&length, 1};
    args.out = out->bytes();
    args.out_offsets = {&offset, 1};
    DKV_TRY(backend.gather(args));

    std::vector<std::byte> gathered(ids.size() * kRowBytes);
    DKV_TRY(backend.download(out->bytes(), gathered));
    for (std::size_t i = 0; i < gathered.size(); ++i) {
        std::uint64_t const at =
            static_cast<std::uint64_t>(ids[i / kRowBytes]) * kRowBytes + i % kRowBytes;
        if (gathered[i] != pattern(at, seed))
            return Error{ErrorCode::Internal, "byte " + std::to_string(at) + " is not as written"};
    }
    return {};
}

Result<void> import_one(Message const& message, UniqueFd file) {
    auto const backend = DKV_TRY(make_cuda_backend());
    cuda::Exported exported;
    if (message.kind == Kind::Ipc)
        exported = cuda::IpcMemory{message.handle, message.allocation_bytes, message.offset,
                                   message.bytes};
    else
        exported = cuda::VmmMemory{std::move(file), message.allocation_bytes, message.offset,
                                   message.bytes};
    {
        auto const opened = DKV_TRY(cuda::open_memory(exported, 1, message.generation));
        auto const events = DKV_TRY(cuda::open_events({&message.event, 1}));
        DKV_TRY(events->wait(0, kPatience, nullptr, nullptr));
        DKV_TRY(check_rows(*backend, opened->bytes(), message.generation));
        std::vector<std::byte> answer(message.bytes);
        for (std::size_t i = 0; i < answer.size(); ++i)
            answer[i] = pattern(i, message.generation + 100);
        DKV_TRY(backend->upload(answer, opened->bytes()));
        DKV_TRY(backend->synchronize());
    }
    if (cuda::opened_memory_count() != 0)
        return Error{ErrorCode::Internal, std::to_string(cuda::opened_memory_count()) +
                                              " mappings are open that nobody holds"};
    return {};
}

int import_all(int socket) {
    Message message{};
    UniqueFd file;
    while (true) {
        auto const more = receive(socket, message, file);
        if (!more || !more.value()) return more ? 0 : 1;
        auto const done = import_one(message, std::move(file));
        std::string const answer = done ? "ok" : done.error().message;
        if (::send(socket, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) return 1;
    }
}

// --- the first process ---

Result<Message> describe(cuda::Exported const& exported, cuda::EventPool const& events) {
    Message message{};
    message.event = events.handles().front();
    auto const fill = [&](auto const& memory) {
        message.allocation_bytes = memory.allocation_bytes;
        message.offset = memory.offset;
        message.bytes = memory.bytes;
    };
    if (auto const* const ipc = std::get_if<cuda::IpcMemory>(&exported)) {
        message.kind = Kind::Ipc;
        message.handle = ipc->handle;
        fill(*ipc);
    } else if (auto const* const vmm = std::get_if<cuda::VmmMemory>(&exported)) {
        message.kind = Kind::Vmm;
        fill(*vmm);
    } else {
        return Error{ErrorCode::Internal, "exported as memory of a pool"};
    }
    return message;
}

Result<void> share(int socket, cuda::DeviceMemory& memory, std::uint32_t generation) {
    auto const range = memory.bytes().subspan(kOffset, kShared);
    std::vector<std::byte> rows(kShared);
    for (std::size_t i = 0; i < rows.size(); ++i)
        rows[i] = pattern(i, generation);
    auto const events = DKV_TRY(cuda::make_event_pool(1));
    DKV_TRY(cuda::copy_to_device(range.data(), rows.data(), rows.size(), nullptr));
    DKV_TRY(events->record(0, nullptr));

    auto const exported = DKV_TRY(cuda::export_memory(range.data(), range.size()));
    Message message = DKV_TRY(describe(exported, *events));
    message.generation = generation;
    auto const* const vmm = std::get_if<cuda::VmmMemory>(&exported);
    DKV_TRY(send(socket, message, vmm != nullptr ? vmm->file.get() : -1));

    std::array<char, 1024> answer{};
    auto const got = ::recv(socket, answer.data(), answer.size(), 0);
    if (got <= 0) return Error{ErrorCode::Internal, "the second process ended without a word"};
    std::string const said(answer.data(), static_cast<std::size_t>(got));
    if (said != "ok") return Error{ErrorCode::Internal, "the second process: " + said};

    DKV_TRY(cuda::copy_to_host(rows.data(), range.data(), rows.size()));
    for (std::size_t i = 0; i < rows.size(); ++i)
        if (rows[i] != pattern(i, generation + 100))
            return Error{ErrorCode::Internal,
                         "byte " + std::to_string(i) + " is not as the second process wrote it"};
    return {};
}

Result<void> share_all(int socket) {
    auto const devices = DKV_TRY(cuda::devices());
    DKV_TRY(cuda::use_device(devices.front().uuid));
    {
        auto const memory = DKV_TRY(cuda::allocate_device_memory(kBytes));
        for (std::uint32_t generation : {1U, 2U})
            DKV_TRY(share(socket, *memory, generation));
        std::puts("cuda_ipc\tok");
    }
    auto const memory = cuda::allocate_vmm_memory(kBytes);
    if (!memory && memory.error().code == ErrorCode::Unavailable) {
        std::printf("cuda_vmm_fd\tskipped: %s\n", memory.error().message.c_str());
        return {};
    }
    if (!memory) return memory.error();
    DKV_TRY(share(socket, *memory.value(), 3));
    std::puts("cuda_vmm_fd\tok");
    return {};
}

}  // namespace

int main(int argc, char** argv) {
    if (argc == 2) return import_all(std::atoi(argv[1]));
    // The second process begins anew, by exec: CUDA's driver does not survive a fork.
    std::array<int, 2> sockets{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets.data()) != 0) {
        std::perror("socketpair");
        return 1;
    }
    pid_t const child = ::fork();
    if (child == 0) {
        ::close(sockets[0]);
        ::execl("/proc/self/exe", argv[0], std::to_string(sockets[1]).c_str(), nullptr);
        ::_exit(127);
    }
    ::close(sockets[1]);
    auto const done = share_all(sockets[0]);
    ::close(sockets[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    if (!done) {
        bool const absent = done.error().code == ErrorCode::Unavailable ||
                            done.error().code == ErrorCode::Unsupported;
        std::fprintf(stderr, "%s%s\n", absent ? "" : "dkv_gpu_ipc: ", done.error().message.c_str());
        return absent ? kNoDevice : 1;
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        std::fprintf(stderr, "dkv_gpu_ipc: the second process ended with status %d\n", status);
        return 1;
    }
    return 0;
}
