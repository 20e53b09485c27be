// What doctor reads off the machine: facts only, so that judging them is a pure function.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace dkv::cli::doctor {

struct Cpu {
    std::string model;               ///< "" where /proc/cpuinfo names none.
    std::vector<std::string> flags;  ///< As the kernel spells them: "avx2", "amx_bf16", "asimd".

    bool has(std::string const& flag) const;
};

struct SocketFolder {
    std::string path;  ///< "": the endpoint is not ipc://.
    bool exists = false;
    bool is_folder = false;
    bool ours = false;
    bool writable = false;   ///< The folder itself, or the place where it would be made.
    std::uint32_t mode = 0;  ///< Permission bits.
};

struct Sidecar {
    std::string version;  ///< "": none answered.
    std::uint32_t protocol = 0;
    std::uint32_t pid = 0;
    std::string error;  ///< Why there was no answer.
    bool wrong_version = false;
};

/// A GPU that this process can see.
struct Gpu {
    std::string uuid;
    std::string name;
    std::string capability;  ///< "9.0"
    std::uint64_t bytes = 0;
    bool handles = false;      ///< Shares memory by legacy IPC handles.
    bool descriptors = false;  ///< By POSIX descriptors: cuMemCreate's and pools.
    bool events = false;       ///< Interprocess events.
};

struct Readings {
    std::string endpoint;
    Cpu cpu;
    unsigned cores = 0;                 ///< That this process may run on.
    std::optional<double> cores_quota;  ///< Of the control group.
    std::uint64_t memory_bytes = 0;
    std::uint64_t memory_available_bytes = 0;
    std::optional<std::uint64_t> memory_limit_bytes;  ///< Of the control group.
    std::optional<std::uint64_t> memory_used_bytes;
    std::optional<std::uint64_t> shm_bytes;  ///< Size of /dev/shm; nothing: there is none.
    std::uint64_t shm_free_bytes = 0;
    std::string memfd_error;        ///< "": made, mapped and punched.
    std::string peer_memory_error;  ///< "": another process's memfd can be opened.
    std::optional<int> ptrace_scope;
    bool hidepid = false;
    std::uint64_t files_max = 0;  ///< RLIMIT_NOFILE, soft.
    std::uint64_t files_hard_max = 0;
    std::uint64_t memlock_bytes = 0;
    std::optional<std::uint64_t> maps_max;  ///< vm.max_map_count
    SocketFolder socket;
    bool gpu_device = false;  ///< /dev/nvidia0
    bool gpu_driver = false;  ///< libcuda.so.1 loads.
    std::string cuda_build;   ///< "CUDA 13.0", "no CUDA".
    std::vector<Gpu> gpus;
    std::string gpus_error;  ///< Why there are none, with CUDA's code.
    Sidecar sidecar;
};

constexpr std::uint64_t kUnlimited = ~std::uint64_t{0};

}  // namespace dkv::cli::doctor
