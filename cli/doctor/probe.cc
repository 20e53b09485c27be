#include "cli/doctor/probe.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <sched.h>
#include <sstream>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

#include "cli/doctor/parse.h"
#include "protocol/base/endpoint.h"
#include "protocol/device/sharing.h"

namespace dkv::cli::doctor {
namespace {

std::string slurp(std::string const& path) {
    std::ifstream file(path);
    std::ostringstream text;
    text << file.rdbuf();
    return text.str();
}

template <class T>
void keep_smaller(std::optional<T>& known, std::optional<T> const& found) {
    if (found && (!known || *found < *known)) known = found;
}

/// The limits of this process's control group and of every one above it. Version 1 only at the
/// place where containers mount it.
void read_cgroup(Readings& readings) {
    for (auto const& path : cgroup_paths(slurp("/proc/self/cgroup"))) {
        std::string const folder = "/sys/fs/cgroup" + path + "/";
        keep_smaller(readings.cores_quota, parse_cpu_max(slurp(folder + "cpu.max")));
        auto const limit = parse_bytes_or_max(slurp(folder + "memory.max"));
        if (!limit || (readings.memory_limit_bytes && *readings.memory_limit_bytes <= *limit))
            continue;
        readings.memory_limit_bytes = limit;
        readings.memory_used_bytes = parse_bytes_or_max(slurp(folder + "memory.current"));
    }
    std::string const v1 = "/sys/fs/cgroup/";
    keep_smaller(readings.cores_quota, parse_cpu_max(slurp(v1 + "cpu/cpu.cfs_quota_us") + " " +
                                                     slurp(v1 + "cpu/cpu.cfs_period_us")));
    auto const limit = parse_bytes_or_max(slurp(v1 + "memory/memory.limit_in_bytes"));
    // "No limit" is written there as a number beyond any machine's memory.
    if (!readings.memory_limit_bytes && limit && *limit < readings.memory_bytes) {
        readings.memory_limit_bytes = limit;
        readings.memory_used_bytes = parse_bytes_or_max(slurp(v1 + "memory/memory.usage_in_bytes"));
    }
}

std::string errno_text(std::string const& what) {
    return what + ": " + std::strerror(errno);
}

class Memfd {
public:
    Memfd() : fd_(::memfd_create("dkv-doctor", MFD_CLOEXEC)) {}
    ~Memfd() {
        if (fd_ >= 0) ::close(fd_);
    }
    Memfd(Memfd const&) = delete;
    Memfd& operator=(Memfd const&) = delete;
    int fd() const noexcept { return fd_; }

private:
    int fd_;
};

/// What an adapter does with its buffers: make, write, give back a part.
std::string try_memfd(Memfd const& memory) {
    constexpr off_t kBytes = 1 << 20;
    if (memory.fd() < 0) return errno_text("memfd_create");
    if (::ftruncate(memory.fd(), kBytes) != 0) return errno_text("ftruncate");
    void* const mapped =
        ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd(), 0);
    if (mapped == MAP_FAILED) return errno_text("mmap");
    std::memset(mapped, 1, kBytes);
    ::munmap(mapped, kBytes);
    if (::fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kBytes) != 0)
        return errno_text("punching a hole");
    struct stat info {};
    if (::fstat(memory.fd(), &info) != 0) return errno_text("fstat");
    if (info.st_blocks != 0) return "a punched hole stayed allocated";
    return {};
}

/// A child opens our memfd through /proc, as the sidecar opens an engine's. The child is not
/// our ancestor, so a security module forbids it the same things as a stranger.
std::string try_peer_memory(Memfd const& memory) {
    if (memory.fd() < 0) return "no memfd to try with";
    std::string const path =
        "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(memory.fd());
    ::pid_t const child = ::fork();
    if (child < 0) return errno_text("fork");
    if (child == 0) {
        int const fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
        ::_exit(fd >= 0 ? 0 : std::min(errno, 255));
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return errno_text("waitpid");
    if (!WIFEXITED(status)) return "the trying process died";
    if (WEXITSTATUS(status) == 0) return {};
    return "opening " + path + ": " + std::strerror(WEXITSTATUS(status));
}

std::uint64_t limit_of(rlim_t value) {
    return value == RLIM_INFINITY ? kUnlimited : value;
}

void read_limits(Readings& readings) {
    struct rlimit limit {};
    if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        readings.files_max = limit_of(limit.rlim_cur);
        readings.files_hard_max = limit_of(limit.rlim_max);
    }
    if (::getrlimit(RLIMIT_MEMLOCK, &limit) == 0) readings.memlock_bytes = limit_of(limit.rlim_cur);
    readings.maps_max = parse_bytes_or_max(slurp("/proc/sys/vm/max_map_count"));
    if (auto const scope = parse_bytes_or_max(slurp("/proc/sys/kernel/yama/ptrace_scope")))
        readings.ptrace_scope = static_cast<int>(*scope);
    readings.hidepid = hides_processes(slurp("/proc/self/mounts"));
}

SocketFolder read_socket_folder(std::string const& endpoint) {
    SocketFolder folder;
    auto const path = std::filesystem::path(ipc_path(endpoint));
    if (path.empty()) return folder;
    auto const parent = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
    folder.path = parent.string();
    struct stat info {};
    folder.exists = ::stat(folder.path.c_str(), &info) == 0;
    if (folder.exists) {
        folder.is_folder = S_ISDIR(info.st_mode);
        folder.ours = info.st_uid == ::getuid();
        folder.mode = info.st_mode & 07777U;
    }
    auto place = parent;
    std::error_code ignored;
    while (!std::filesystem::exists(place, ignored) && place.has_parent_path() &&
           place != place.parent_path())
        place = place.parent_path();
    if (place.empty()) place = ".";
    folder.writable = ::access(place.c_str(), W_OK | X_OK) == 0;
    return folder;
}

unsigned usable_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (::sched_getaffinity(0, sizeof set, &set) == 0)
        return static_cast<unsigned>(CPU_COUNT(&set));
    return static_cast<unsigned>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
}

bool loads_libcuda() {
    void* const library = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (library == nullptr) return false;
    ::dlclose(library);
    return true;
}

void read_gpus(Readings& readings) {
    readings.cuda_build = cuda::built_with();
    auto const devices = cuda::devices();
    if (!devices) {
        readings.gpus_error = devices.error().message;
        return;
    }
    for (auto const& device : devices.value()) {
        auto const sharing = cuda::sharing_of(device);
        auto const can = sharing ? sharing.value() : cuda::Sharing{};
        readings.gpus.push_back(
            {.uuid = device.uuid,
             .name = device.name,
             .capability = std::to_string(device.major) + "." + std::to_string(device.minor),
             .bytes = device.bytes,
             .handles = can.handles,
             .descriptors = can.descriptors,
             .events = can.events});
    }
}

}  // namespace

Readings read_machine(std::string const& endpoint) {
    Readings readings;
    readings.endpoint = endpoint;
    readings.cpu = parse_cpuinfo(slurp("/proc/cpuinfo"));
    readings.cores = usable_cores();
    auto const meminfo = slurp("/proc/meminfo");
    readings.memory_bytes = parse_meminfo(meminfo, "MemTotal");
    readings.memory_available_bytes = parse_meminfo(meminfo, "MemAvailable");
    read_cgroup(readings);
    struct statvfs shm {};
    if (::statvfs("/dev/shm", &shm) == 0) {
        readings.shm_bytes = std::uint64_t{shm.f_blocks} * shm.f_frsize;
        readings.shm_free_bytes = std::uint64_t{shm.f_bavail} * shm.f_frsize;
    }
    Memfd const memory;
    readings.memfd_error = try_memfd(memory);
    readings.peer_memory_error = try_peer_memory(memory);
    read_limits(readings);
    readings.socket = read_socket_folder(endpoint);
    readings.gpu_device = ::access("/dev/nvidia0", F_OK) == 0;
    readings.gpu_driver = loads_libcuda();
    read_gpus(readings);
    return readings;
}

}  // namespace dkv::cli::doctor
