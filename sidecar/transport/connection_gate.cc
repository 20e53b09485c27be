#include "sidecar/transport/connection_gate.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <dlfcn.h>
#include <fcntl.h>
#include <mutex>
#include <vector>

#include <sys/socket.h>
#include <sys/stat.h>

#include "protocol/base/peer.h"
#include "protocol/base/unique_fd.h"

namespace dkv {
namespace {

/// Descriptors with higher numbers are not admitted.
constexpr int kDescriptorsEnd = 1 << 16;

class Gate {
public:
    void bound(ConnectionLimits const& limits) {
        std::lock_guard const lock(mutex_);
        limits_ = limits;
        bytes_in_max_ = limits.bytes_in_max;
        bytes_out_max_ = limits.bytes_out_max;
        bytes_out_in_all_max_ = limits.bytes_out_in_all_max;
        if (!spare_) spare_ = spare();
    }
    bool is_bounded() {
        std::lock_guard const lock(mutex_);
        return limits_.connections_max != 0;
    }
    /// Whether the connection may stay. What comes over TCP proves itself later, with a key.
    bool admit(int connection, bool is_tcp) {
        std::lock_guard const lock(mutex_);
        if (limits_.connections_max == 0) return true;
        if (!is_tcp) {
            auto const peer = peer_of(connection);
            if (!peer || !is_trusted(peer->uid)) return false;
        }
        if (connection >= std::min(limits_.descriptors_end, kDescriptorsEnd)) return false;
        if (is_full(is_tcp))
            std::erase_if(admitted_, [](Admitted const& one) { return !one.is_open(); });
        if (is_full(is_tcp)) return false;
        admitted_.push_back(Admitted::of(connection, is_tcp));
        auto& waiting = waiting_[static_cast<std::size_t>(connection)];
        waiting.in = 0;
        out_in_all_ -= waiting.out.exchange(0);
        waiting.admitted = true;
        return true;
    }
    /// Lends the one descriptor that is kept for it, so that who waits in the backlog can be turned
    /// away: otherwise the listening socket would stay readable, and the loop would spin.
    template <class Accept>
    void turn_away(Accept accept) {
        std::lock_guard const lock(mutex_);
        spare_ = UniqueFd();
        UniqueFd(accept()).reset();
        spare_ = spare();
    }
    /// Whether the connection may go on.
    bool received(int connection, std::int64_t bytes) noexcept {
        auto* const waiting = waiting_of(connection);
        if (waiting == nullptr || bytes_in_max_ == 0) return true;
        return waiting->in.fetch_add(bytes) + bytes <= bytes_in_max_;
    }
    void handled(int connection, std::int64_t bytes) noexcept {
        if (auto* const waiting = waiting_of(connection)) take_off(waiting->in, bytes);
    }
    bool take_room(int connection, std::int64_t bytes) noexcept {
        auto* const waiting = waiting_of(connection);
        if (waiting == nullptr || bytes_out_max_ == 0) return true;
        auto const before = waiting->out.load();
        if (before > 0 &&
            (before + bytes > bytes_out_max_ || out_in_all_ + bytes > bytes_out_in_all_max_))
            return false;
        waiting->out += bytes;
        out_in_all_ += bytes;
        return true;
    }
    void sent(int connection, std::int64_t bytes) noexcept {
        if (auto* const waiting = waiting_of(connection))
            out_in_all_ -= take_off(waiting->out, bytes);
    }

    std::atomic<std::size_t> refused{0};

private:
    struct Admitted {
        int descriptor = -1;
        ino_t inode = 0;
        bool is_tcp = false;

        static Admitted of(int descriptor, bool is_tcp) {
            struct stat info {};
            ::fstat(descriptor, &info);
            return {descriptor, info.st_ino, is_tcp};
        }
        /// libzmq closes without telling: the number is then nothing, or another file's.
        bool is_open() const { return of(descriptor, is_tcp).inode == inode; }
    };
    struct Waiting {
        std::atomic<bool> admitted{false};  ///< Else it is not ours to count.
        std::atomic<std::int64_t> in{0};
        std::atomic<std::int64_t> out{0};
    };

    /// All connections share one bound, and those over TCP have a smaller one of their own: anyone
    /// who reaches the port holds one until its handshake fails, and engines keep the rest.
    bool is_full(bool is_tcp) const {
        if (admitted_.size() >= limits_.connections_max) return true;
        if (!is_tcp) return false;
        auto const tcp = std::ranges::count_if(admitted_, &Admitted::is_tcp);
        return static_cast<std::size_t>(tcp) >= tcp_connections_max(limits_.connections_max);
    }
    /// Not below nothing: greetings are not counted, and the descriptor may be another connection's
    /// by now. Returns what was taken off.
    static std::int64_t take_off(std::atomic<std::int64_t>& count, std::int64_t bytes) noexcept {
        auto const off = std::min(bytes, count.load());
        count -= off;
        return off;
    }
    static UniqueFd spare() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }
    Waiting* waiting_of(int connection) noexcept {
        if (connection < 0 || connection >= kDescriptorsEnd) return nullptr;
        auto& waiting = waiting_[static_cast<std::size_t>(connection)];
        return waiting.admitted ? &waiting : nullptr;
    }

    std::mutex mutex_;
    ConnectionLimits limits_;
    std::atomic<std::int64_t> bytes_in_max_{0};
    std::atomic<std::int64_t> bytes_out_max_{0};
    std::atomic<std::int64_t> bytes_out_in_all_max_{0};
    std::atomic<std::int64_t> out_in_all_{0};
    std::vector<Admitted> admitted_;
    UniqueFd spare_;
    std::array<Waiting, kDescriptorsEnd> waiting_{};
};

Gate& gate() {
    static auto* const the_gate = new Gate;  // libzmq's threads may outlive main().
    return *the_gate;
}

int family_of(int socket) noexcept {
    int family = 0;
    socklen_t size = sizeof family;
    return ::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &family, &size) == 0 ? family : -1;
}

}  // namespace

void bound_connections(ConnectionLimits const& limits) {
    gate().bound(limits);
}

void note_handled(int connection, std::size_t bytes) noexcept {
    gate().handled(connection, static_cast<std::int64_t>(bytes));
}

bool take_room(int connection, std::size_t bytes) noexcept {
    return gate().take_room(connection, static_cast<std::int64_t>(bytes));
}

std::size_t tcp_connections_max(std::size_t connections_max) noexcept {
    return std::max<std::size_t>(connections_max / 16, 1);
}

std::size_t connections_refused() noexcept {
    return gate().refused;
}

}  // namespace dkv

/// In place of the C library's. What is refused looks like a connection that its peer gave up
/// (ECONNABORTED), which libzmq survives.
extern "C" int accept4(int fd, sockaddr* addr, socklen_t* addr_len, int flags) {
    using Accept4 = int (*)(int, sockaddr*, socklen_t*, int);
    static auto const next = reinterpret_cast<Accept4>(::dlsym(RTLD_NEXT, "accept4"));
    int const connection = next(fd, addr, addr_len, flags);
    int const error = errno;
    bool const exhausted =
        connection < 0 && dkv::gate().is_bounded() &&
        (error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM);
    int const family = dkv::family_of(fd);
    bool const is_tcp = family == AF_INET || family == AF_INET6;
    if ((connection < 0 && !exhausted) || (family != AF_UNIX && !is_tcp) ||
        (connection >= 0 && dkv::gate().admit(connection, is_tcp))) {
        errno = error;
        return connection;
    }
    ++dkv::gate().refused;
    if (exhausted)
        dkv::gate().turn_away([&] { return next(fd, nullptr, nullptr, flags); });
    else
        dkv::UniqueFd(connection).reset();
    errno = ECONNABORTED;
    return -1;
}

/// In place of the C library's: 0, the end of the connection, where too much of it waits.
extern "C" ssize_t recv(int fd, void* buf, size_t n, int flags) {
    using Recv = ssize_t (*)(int, void*, size_t, int);
    static auto const next = reinterpret_cast<Recv>(::dlsym(RTLD_NEXT, "recv"));
    ssize_t const bytes = next(fd, buf, n, flags);
    if (bytes <= 0 || dkv::gate().received(fd, bytes)) return bytes;
    ++dkv::gate().refused;
    ::shutdown(fd, SHUT_RDWR);
    return 0;
}

extern "C" ssize_t send(int fd, void const* buf, size_t n, int flags) {
    using Send = ssize_t (*)(int, void const*, size_t, int);
    static auto const next = reinterpret_cast<Send>(::dlsym(RTLD_NEXT, "send"));
    ssize_t const bytes = next(fd, buf, n, flags);
    if (bytes > 0) dkv::gate().sent(fd, bytes);
    return bytes;
}
