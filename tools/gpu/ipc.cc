// dkv_gpu_ipc [--peer=PROGRAM]: two processes, one device buffer. This process, in the engine's
// place, writes rows, records an event and counts a word of the buffer up; a second one, in the
// sidecar's, opens the memory by what was sent, waits for event and word, gathers rows out of it
// without a copy in between, and writes an answer into it. Once for each kind of memory that this
// device can share, and a line for each: "cuda_ipc ok", "cuda_vmm_fd skipped: why".
//
// --peer: what is run as the second process, which is else this program again.
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <unistd.h>
#include <vector>

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "kernels/backend.h"
#include "protocol/device/copy.h"
#include "protocol/device/device.h"
#include "tools/gpu/channel.h"
#include "tools/gpu/pool_memory.h"

namespace {

using namespace dkv;
using gpu::Kind;
using gpu::Message;

constexpr int kNoDevice = 77;
constexpr std::uint64_t kBytes = std::uint64_t{4} << 20U;
constexpr std::uint64_t kOffset = 64 << 10U;  // Allocators hand out parts of allocations.
constexpr std::uint64_t kShared = kBytes - 2 * kOffset;
constexpr std::uint32_t kRowBytes = 256;
constexpr std::uint32_t kRows = kShared / kRowBytes - 1;  // Behind them is the word.
constexpr std::uint64_t kWordAt = kShared - sizeof(std::uint64_t);
constexpr auto kPatience = std::chrono::seconds(20);
constexpr timeval kAnswerWithin{60, 0};

std::byte pattern(std::uint64_t at, std::uint32_t seed) {
    return static_cast<std::byte>(at * 131 + at / kRowBytes * 7 + seed);
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

cuda::Exported exported_of(gpu::Received received) {
    Message const& message = received.message;
    auto const with_range = [&](auto memory) {
        memory.allocation_bytes = message.allocation_bytes;
        memory.offset = message.offset;
        memory.bytes = message.bytes;
        return cuda::Exported(std::move(memory));
    };
    if (message.kind == Kind::Vmm) {
        cuda::VmmMemory memory;
        memory.file = std::move(received.file);
        return with_range(std::move(memory));
    }
    if (message.kind == Kind::Pool) {
        cuda::PoolMemory memory;
        memory.pool = std::move(received.file);
        memory.pointer = message.handle;
        return with_range(std::move(memory));
    }
    cuda::IpcMemory memory;
    memory.handle = message.handle;
    return with_range(memory);
}

Result<void> import_one(gpu::Received received) {
    Message const message = received.message;
    auto const backend = DKV_TRY(make_cuda_backend());
    {
        auto const opened =
            DKV_TRY(cuda::open_memory(exported_of(std::move(received)), 1, message.generation));
        auto const events = DKV_TRY(cuda::open_events({&message.event, 1}));
        DKV_TRY(events->wait(0, kPatience, nullptr, nullptr));
        if (message.timeline)
            DKV_TRY(cuda::wait_timeline(opened->bytes().data() + kWordAt, message.generation,
                                        kPatience, nullptr, nullptr));
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
    while (true) {
        auto received = gpu::receive(socket);
        if (!received) return 1;
        if (!received.value()) return 0;
        auto const done = import_one(*std::move(received).value());
        std::string const answer = done ? "ok" : done.error().message;
        if (::send(socket, answer.data(), answer.size(), MSG_NOSIGNAL) < 0) return 1;
    }
}

// --- the first process ---

/// The message, and in `file` what crosses beside it, or -1.
Message describe(cuda::Exported const& exported, cuda::EventPool const& events, int& file) {
    Message message{};
    message.event = events.handles().front();
    file = -1;
    auto const fill = [&](Kind kind, auto const& memory) {
        message.kind = kind;
        message.allocation_bytes = memory.allocation_bytes;
        message.offset = memory.offset;
        message.bytes = memory.bytes;
    };
    if (auto const* const ipc = std::get_if<cuda::IpcMemory>(&exported)) {
        message.handle = ipc->handle;
        fill(Kind::Ipc, *ipc);
    } else if (auto const* const vmm = std::get_if<cuda::VmmMemory>(&exported)) {
        file = vmm->file.get();
        fill(Kind::Vmm, *vmm);
    } else {
        auto const& pool = std::get<cuda::PoolMemory>(exported);
        file = pool.pool.get();
        message.handle = pool.pointer;
        fill(Kind::Pool, pool);
    }
    return message;
}

/// Waits for the second process to be done.
Result<void> wait_for_peer(int socket) {
    std::array<char, 1024> answer{};
    auto const got = ::recv(socket, answer.data(), answer.size(), 0);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return Error{ErrorCode::DeadlineExceeded, "the second process says nothing for " +
                                                      std::to_string(kAnswerWithin.tv_sec) + " s"};
    if (got <= 0) return Error{ErrorCode::Internal, "the second process ended without a word"};
    std::string const said(answer.data(), static_cast<std::size_t>(got));
    if (said != "ok") return Error{ErrorCode::Internal, "the second process: " + said};
    return {};
}

Result<void> share(int socket, Kind kind, cuda::DeviceMemory& memory, std::uint32_t generation) {
    auto const range = memory.bytes().subspan(kOffset, kShared);
    std::vector<std::byte> rows(kShared);
    for (std::size_t i = 0; i < kWordAt; ++i)
        rows[i] = pattern(i, generation);
    auto const events = DKV_TRY(cuda::make_event_pool(1));
    DKV_TRY(cuda::copy_to_device(range.data(), rows.data(), rows.size(), nullptr));
    auto const counted = cuda::write_timeline(range.data() + kWordAt, generation, nullptr);
    if (!counted && counted.error().code != ErrorCode::Unavailable) return counted.error();
    DKV_TRY(events->record(0, nullptr));

    auto const exported = DKV_TRY(cuda::export_memory(range.data(), range.size()));
    int file = -1;
    Message message = describe(exported, *events, file);
    if (message.kind != kind)
        return Error{ErrorCode::Internal, "it was exported as another kind of memory"};
    message.generation = generation;
    message.timeline = static_cast<bool>(counted);
    DKV_TRY(gpu::send(socket, message, file));
    DKV_TRY(wait_for_peer(socket));

    DKV_TRY(cuda::copy_to_host(rows.data(), range.data(), rows.size()));
    for (std::size_t i = 0; i < rows.size(); ++i)
        if (rows[i] != pattern(i, generation + 100))
            return Error{ErrorCode::Internal,
                         "byte " + std::to_string(i) + " is not as the second process wrote it"};
    return {};
}

bool is_not_here(Error const& error) {
    return error.code == ErrorCode::Unavailable || error.code == ErrorCode::Unsupported;
}

/// Twice, for the second time's handle may be the first's and its rows are not.
Result<void> share_twice(int socket,
                         Kind kind,
                         Result<std::unique_ptr<cuda::DeviceMemory>> const& memory) {
    if (!memory) return memory.error();
    auto const first = 2 * static_cast<std::uint32_t>(kind) + 1;
    for (std::uint32_t const generation : {first, first + 1})
        DKV_TRY(share(socket, kind, *memory.value(), generation));
    return {};
}

/// Devices and systems lack one kind or the other: it is reported, and not an error.
Result<void> share_kind(int socket,
                        Kind kind,
                        char const* name,
                        Result<std::unique_ptr<cuda::DeviceMemory>> const& memory) {
    auto const done = share_twice(socket, kind, memory);
    if (done)
        std::printf("%s\tok\n", name);
    else if (is_not_here(done.error()))
        std::printf("%s\tskipped: %s\n", name, done.error().message.c_str());
    else
        return Error{done.error().code, std::string(name) + ": " + done.error().message};
    std::fflush(stdout);
    return {};
}

Result<void> share_all(int socket) {
    auto const devices = DKV_TRY(cuda::devices());
    DKV_TRY(cuda::use_device(devices.front().uuid));
    DKV_TRY(share_kind(socket, Kind::Ipc, "cuda_ipc", cuda::allocate_device_memory(kBytes)));
    DKV_TRY(share_kind(socket, Kind::Vmm, "cuda_vmm_fd", cuda::allocate_vmm_memory(kBytes)));
    return share_kind(socket, Kind::Pool, "cuda_pool", gpu::allocate_pool_memory(kBytes));
}

int fail(Error const& error) {
    bool const absent = is_not_here(error);
    std::fprintf(stderr, "%s%s\n", absent ? "" : "dkv_gpu_ipc: ", error.message.c_str());
    return absent ? kNoDevice : 1;
}

int run_both(char const* peer) {
    // The second process begins anew, by exec: CUDA's driver does not survive a fork.
    std::array<int, 2> sockets{};
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets.data()) != 0)
        return fail(gpu::system_error("socketpair"));
    ::setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &kAnswerWithin, sizeof kAnswerWithin);
    pid_t const child = ::fork();
    if (child < 0) return fail(gpu::system_error("fork"));
    if (child == 0) {
        ::close(sockets[0]);
        ::execl(peer, peer, std::to_string(sockets[1]).c_str(), nullptr);
        ::_exit(127);
    }
    ::close(sockets[1]);
    auto const done = share_all(sockets[0]);
    ::close(sockets[0]);
    if (!done) ::kill(child, SIGKILL);  // It may be stuck in what failed.
    int status = 0;
    ::waitpid(child, &status, 0);
    if (!done) return fail(done.error());
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        std::fprintf(stderr, "dkv_gpu_ipc: the second process ended with status %d\n", status);
        return 1;
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    constexpr std::string_view kPeer = "--peer=";
    std::string_view const argument = argc == 2 ? argv[1] : "";
    if (argc == 1) return run_both("/proc/self/exe");
    if (argument.starts_with(kPeer)) return run_both(argv[1] + kPeer.size());
    int socket = -1;
    auto const* const end = argument.data() + argument.size();
    if (!argument.empty() && std::from_chars(argument.data(), end, socket).ptr == end)
        return import_all(socket);
    std::fprintf(stderr, "usage: dkv_gpu_ipc [--peer=PROGRAM]\n");
    return 2;
}
