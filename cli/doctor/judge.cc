#include "cli/doctor/judge.h"

#include <algorithm>

#include <fmt/format.h>

#include "cli/render/text.h"
#include "protocol/base/version.h"
#include "protocol/schema/envelope.h"

namespace dkv::cli::doctor {
namespace {

constexpr std::uint64_t kMiB = 1U << 20U;
constexpr std::uint64_t kGiB = 1U << 30U;
constexpr std::uint64_t kFilesWanted = 1024;
constexpr std::uint64_t kMapsWanted = 65530;  // The kernel's default.

Finding cpu(Readings const& r) {
    Finding f{"cpu", Level::Ok, r.cpu.model.empty() ? "an unnamed CPU" : r.cpu.model, "", ""};
    std::string features;
    for (auto const& [flag, name] : {std::pair{"avx2", "AVX2"},
                                     {"avx512f", "AVX-512"},
                                     {"avx512_bf16", "AVX512_BF16"},
                                     {"amx_bf16", "AMX"},
                                     {"asimd", "NEON"},
                                     {"sve", "SVE"},
                                     {"bf16", "BF16"}})
        if (r.cpu.has(flag)) features += (features.empty() ? "" : ", ") + std::string(name);
    if (features.empty()) {
        f.level = Level::Warn;
        f.found += "; none of AVX2, AVX-512, NEON";
        f.means = "scores are computed one number at a time: right, but several times slower";
        f.advice = "in a virtual machine, let it see the host's CPU features";
        return f;
    }
    f.found += "; " + features;
    f.means = r.cpu.has("avx512_bf16")
                  ? "vector kernels; bf16 is multiplied in pairs, f16 widened to f32 on the way"
                  : "vector kernels; bf16 and f16 caches are widened to f32 on the way";
    return f;
}

Finding cores(Readings const& r) {
    Finding f{"cores", Level::Ok, counted(r.cores, "core"), "", ""};
    double usable = r.cores;
    if (r.cores_quota) {
        usable = std::min(usable, *r.cores_quota);
        f.found += fmt::format(", a quota of {:.1f}", *r.cores_quota);
    } else {
        f.found += ", no quota";
    }
    if (usable >= 2) {
        f.means = "the sidecar works beside the engine";
        return f;
    }
    f.level = Level::Warn;
    f.means = "the sidecar and the engine take turns: prefill slows down while layers are scored";
    f.advice = "give the container or the machine two cores or more";
    return f;
}

Finding memory(Readings const& r) {
    std::uint64_t available = r.memory_available_bytes;
    Finding f{"memory", Level::Ok,
              fmt::format("{}, {} available", human_bytes(r.memory_bytes),
                          human_bytes(r.memory_available_bytes)),
              "", ""};
    if (r.memory_limit_bytes) {
        auto const used = r.memory_used_bytes.value_or(0);
        auto const left = *r.memory_limit_bytes > used ? *r.memory_limit_bytes - used : 0;
        available = std::min(available, left);
        f.found += fmt::format("; the control group allows {}, {} in use",
                               human_bytes(*r.memory_limit_bytes), human_bytes(used));
    } else {
        f.found += "; no control group limit";
    }
    f.means = "caches belong to the engine: the sidecar maps them and adds little of its own";
    if (available < kGiB) {
        f.level = Level::Warn;
        f.means = "a long prompt's full cache may not fit before it is compressed";
        f.advice = "free some memory, or raise the control group's limit";
    }
    return f;
}

Finding shm(Readings const& r) {
    Finding f{"/dev/shm", Level::Ok, "", "", ""};
    bool const small = !r.shm_bytes || *r.shm_bytes <= 64 * kMiB;
    f.found = r.shm_bytes ? fmt::format("{}, {} free", human_bytes(*r.shm_bytes),
                                        human_bytes(r.shm_free_bytes))
                          : "not there";
    if (!small) {
        f.means = "room for named shared memory too; by default dkv's buffers are memfds";
        return f;
    }
    f.means =
        "a container's usual size; memfds, dkv's default, are not taken from it and do not "
        "feel its limit";
    f.advice =
        "nothing, unless an engine insists on named shared memory: then docker run "
        "--shm-size=8g";
    if (!r.memfd_error.empty()) {
        f.level = Level::Warn;
        f.means = "memfds do not work here, so every buffer would have to fit into it";
        f.advice = "docker run --shm-size=8g, or mount a larger tmpfs on /dev/shm";
    }
    return f;
}

Finding memfd(Readings const& r) {
    if (r.memfd_error.empty())
        return {"memfd", Level::Ok, "made, mapped and punched",
                "dropped tokens can be given back to the system while the engine runs", ""};
    return {"memfd", Level::Fail, r.memfd_error,
            "engines cannot share their caches the default way, or cannot give bytes back",
            "allow memfd_create and fallocate in the container's seccomp profile"};
}

Finding peer_memory(Readings const& r) {
    std::string scope = r.ptrace_scope ? fmt::format("ptrace_scope {}", *r.ptrace_scope)
                                       : std::string("no ptrace_scope");
    if (r.hidepid) scope += ", /proc hides other users' processes";
    if (r.peer_memory_error.empty())
        return {"other processes", Level::Ok,
                "another process's memfd can be opened through /proc/PID/fd (" + scope + ")",
                "the sidecar reaches the engine's buffers", ""};
    return {"other processes", Level::Fail, r.peer_memory_error + " (" + scope + ")",
            "the sidecar cannot reach an engine's memfd: no engine can attach that way",
            "run the engine and the sidecar as one user, in one PID namespace (docker run "
            "--pid=container:NAME), without a policy that forbids /proc/PID/fd"};
}

Finding open_files(Readings const& r) {
    auto const text = [](std::uint64_t limit) {
        return limit == kUnlimited ? std::string("unlimited") : std::to_string(limit);
    };
    Finding f{"open files", Level::Ok,
              fmt::format("limit {}, at most {}", text(r.files_max), text(r.files_hard_max)),
              "an engine holds a descriptor or two per session, the sidecar one per connection",
              ""};
    if (r.files_max < kFilesWanted) {
        f.level = Level::Warn;
        f.means = "many engines or sessions at once will be refused";
        f.advice = "ulimit -n 4096 before starting the sidecar and the engine";
    }
    return f;
}

Finding locked_memory(Readings const& r) {
    return {"locked memory", Level::Ok,
            r.memlock_bytes == kUnlimited ? "no limit" : "limit " + human_bytes(r.memlock_bytes),
            "dkv locks no memory, so this limit does not matter to it", ""};
}

Finding mappings(Readings const& r) {
    if (!r.maps_max)
        return {"mappings", Level::Ok, "vm.max_map_count cannot be read here",
                "the kernel's default of 65530 is plenty", ""};
    Finding f{"mappings", Level::Ok, fmt::format("vm.max_map_count {}", *r.maps_max),
              "the sidecar needs one mapping per region of an engine", ""};
    if (*r.maps_max < kMapsWanted) {
        f.level = Level::Warn;
        f.means = "a sidecar with many regions may run out of mappings";
        f.advice = "sysctl vm.max_map_count=65530";
    }
    return f;
}

Finding socket_folder(Readings const& r) {
    auto const& s = r.socket;
    Finding f{"socket folder", Level::Ok, "", "", ""};
    if (s.path.empty()) {
        f.found = "none: the endpoint is " + r.endpoint;
        f.means = "who may talk to the sidecar is a matter of the network, not of file permissions";
        return f;
    }
    f.found =
        s.exists ? fmt::format("{}, mode {:04o}", s.path, s.mode) : s.path + ", not there yet";
    auto const fail = [&](char const* means, std::string advice) {
        f.level = Level::Fail;
        f.means = means;
        f.advice = std::move(advice);
        return f;
    };
    if (!s.exists && s.writable) {
        f.means = "the sidecar makes it, mode 0700, when it starts";
        return f;
    }
    if (!s.exists)
        return fail("it cannot be made there: a sidecar cannot listen",
                    "set XDG_RUNTIME_DIR, or DKV_ENDPOINT to a folder of your own");
    if (!s.is_folder)
        return fail("it is not a folder, so a sidecar cannot listen there",
                    "remove it, or set DKV_ENDPOINT");
    if (!s.ours)
        return fail("it belongs to another user, who could pose as your sidecar",
                    "set XDG_RUNTIME_DIR, or DKV_ENDPOINT to a folder of your own");
    if ((s.mode & 0022U) != 0)
        return fail("others may write to it, and could pose as your sidecar",
                    "chmod 700 " + s.path);
    if ((s.mode & 0077U) != 0) {
        f.level = Level::Warn;
        f.means = "others may see the socket; only its own mode keeps them out";
        f.advice = "chmod 700 " + s.path;
        return f;
    }
    f.means = "only you can reach the sidecar";
    return f;
}

Finding sidecar(Readings const& r) {
    auto const& s = r.sidecar;
    if (s.wrong_version)
        return {"sidecar", Level::Fail, s.error,
                fmt::format("this dkv is {} and speaks protocol {}", kVersion, kProtocolVersion),
                "restart the sidecar with the dkvd that came with this dkv"};
    if (s.version.empty())
        return {"sidecar", Level::Warn, s.error, "engines run, but uncompressed",
                "start one with: dkv serve"};
    return {"sidecar", Level::Ok,
            fmt::format("version {}, protocol {}, pid {}, at {}", s.version, s.protocol, s.pid,
                        r.endpoint),
            s.version == kVersion ? "engines can attach"
                                  : fmt::format("engines can attach; this dkv is {}", kVersion),
            ""};
}

std::string ways(Gpu const& gpu) {
    std::string all;
    for (auto const& [can, name] : {std::pair{gpu.handles, "IPC handles"},
                                    {gpu.descriptors, "descriptors (VMM, pools)"},
                                    {gpu.events, "events"}})
        if (can) all += (all.empty() ? "" : ", ") + std::string(name);
    return all.empty() ? "nothing can be shared" : "shares by " + all;
}

Finding gpu(Readings const& r) {
    bool const is_built_without = r.cuda_build == "no CUDA";
    if (r.gpus.empty() && !r.gpu_device && !r.gpu_driver)
        return {"gpu", Level::Ok, "no NVIDIA device, no CUDA driver; built with " + r.cuda_build,
                is_built_without ? "the CPU backend does the work; --backend cuda and libdkv_cuda "
                                   "are left out of this build"
                                 : "the CPU backend does the work",
                ""};
    if (r.gpus.empty()) {
        Finding f{"gpu", Level::Warn,
                  r.gpu_device && r.gpu_driver ? "an NVIDIA device and its CUDA driver"
                  : r.gpu_device ? "an NVIDIA device (/dev/nvidia0), but no CUDA driver"
                                 : "a CUDA driver, but no /dev/nvidia0",
                  "", ""};
        f.found += "; " + r.gpus_error;
        f.means = is_built_without
                      ? "this build of dkv has no CUDA backend: caches in GPU memory cannot be "
                        "compressed"
                      : "caches in GPU memory cannot be compressed";
        f.advice = is_built_without
                       ? "run the engine on the CPU, or build dkv with a CUDA toolkit"
                       : "a driver for CUDA 12 or newer, and the device in this container (docker "
                         "run --gpus all); or run the engine on the CPU";
        return f;
    }
    Finding f{"gpu", Level::Ok, "",
              "engines on it are compressed there; built with " + r.cuda_build, ""};
    bool can_share = true;
    bool has_events = true;
    for (Gpu const& gpu : r.gpus) {
        f.found += (f.found.empty() ? "" : "; ") +
                   fmt::format("{} ({}, compute capability {}, {}), {}", gpu.uuid, gpu.name,
                               gpu.capability, human_bytes(gpu.bytes), ways(gpu));
        can_share = can_share && (gpu.handles || gpu.descriptors);
        has_events = has_events && gpu.events;
    }
    f.advice = "engine and sidecar in one pid namespace (docker run --pid=container:NAME)";
    if (has_events)
        f.advice +=
            ", and for its events one /dev/shm (--ipc=container:NAME; else "
            "DKV_CUDA_EVENTS=timeline for the engine)";
    if (!can_share) {
        f.level = Level::Warn;
        f.means = "its memory cannot be shared with the sidecar: engines on it run uncompressed";
    }
    if (r.ptrace_scope.value_or(0) > 0)
        f.means += fmt::format(
            "; descriptors come over the sidecar's own socket, so ptrace_scope "
            "{} does not matter to them",
            *r.ptrace_scope);
    return f;
}

}  // namespace

std::vector<Finding> judge(Readings const& r) {
    return {cpu(r),      cores(r),         memory(r),     shm(r),
            memfd(r),    peer_memory(r),   open_files(r), locked_memory(r),
            mappings(r), socket_folder(r), sidecar(r),    gpu(r)};
}

Level worst(std::vector<Finding> const& findings) {
    Level level = Level::Ok;
    for (Finding const& finding : findings)
        level = std::max(level, finding.level);
    return level;
}

}  // namespace dkv::cli::doctor
