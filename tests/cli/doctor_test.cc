#include <doctest/doctest.h>

#include "cli/doctor/judge.h"
#include "cli/doctor/parse.h"
#include "cli/doctor/probe.h"
#include "cli/render/findings.h"
#include "tests/cli/fakes.h"

using namespace dkv::cli;
using namespace dkv::cli::doctor;
using dkv::test::good_machine;

namespace {

Finding find(Readings const& readings, std::string const& name) {
    for (auto const& finding : judge(readings))
        if (finding.name == name) return finding;
    FAIL("no finding named " << name);
    return {};
}

}  // namespace

TEST_CASE("doctor: a good machine has twelve findings, all ok") {
    auto const findings = judge(good_machine());

    CHECK(findings.size() == 12);
    for (auto const& finding : findings) {
        CAPTURE(finding.name);
        CHECK(finding.level == Level::Ok);
        CHECK_FALSE(finding.found.empty());
        CHECK_FALSE(finding.means.empty());
    }
}

TEST_CASE("doctor: whatever is wrong says what to do") {
    struct Case {
        char const* name;
        void (*breaks)(Readings&);
        Level level;
        char const* advice;
    };
    for (auto const& [name, breaks, level, advice] : {
             Case{"cpu", [](Readings& r) { r.cpu.flags = {"sse2"}; }, Level::Warn,
                  "virtual machine"},
             Case{"cores", [](Readings& r) { r.cores_quota = 0.5; }, Level::Warn, "two cores"},
             Case{"memory", [](Readings& r) { r.memory_available_bytes = 1 << 20U; }, Level::Warn,
                  "free some memory"},
             Case{"memory",
                  [](Readings& r) {
                      r.memory_limit_bytes = 2ULL << 30U;
                      r.memory_used_bytes = 2ULL << 30U;
                  },
                  Level::Warn, "control group's limit"},
             Case{"/dev/shm",
                  [](Readings& r) {
                      r.shm_bytes = 64ULL << 20U;
                      r.memfd_error = "memfd_create: Operation not permitted";
                  },
                  Level::Warn, "--shm-size"},
             Case{"memfd",
                  [](Readings& r) { r.memfd_error = "memfd_create: Function not implemented"; },
                  Level::Fail, "seccomp"},
             Case{"other processes",
                  [](Readings& r) {
                      r.peer_memory_error = "opening /proc/1/fd/3: Permission denied";
                  },
                  Level::Fail, "--pid=container"},
             Case{"open files", [](Readings& r) { r.files_max = 256; }, Level::Warn, "ulimit -n"},
             Case{"mappings", [](Readings& r) { r.maps_max = 1000; }, Level::Warn, "max_map_count"},
             Case{"socket folder", [](Readings& r) { r.socket.mode = 0755; }, Level::Warn,
                  "chmod 700"},
             Case{"socket folder", [](Readings& r) { r.socket.mode = 0777; }, Level::Fail,
                  "chmod 700"},
             Case{"socket folder", [](Readings& r) { r.socket.ours = false; }, Level::Fail,
                  "DKV_ENDPOINT"},
             Case{"socket folder", [](Readings& r) { r.socket.is_folder = false; }, Level::Fail,
                  "remove it"},
             Case{"socket folder",
                  [](Readings& r) {
                      r.socket.exists = false;
                      r.socket.writable = false;
                  },
                  Level::Fail, "XDG_RUNTIME_DIR"},
             Case{"sidecar",
                  [](Readings& r) {
                      r.sidecar = {"", 0, 0, "unasked listens", false};
                  },
                  Level::Warn, "dkv serve"},
             Case{"sidecar",
                  [](Readings& r) {
                      r.sidecar = {"", 0, 0, "it speaks 2", true};
                  },
                  Level::Fail, "restart"},
             Case{"gpu", [](Readings& r) { r.gpu_device = true; }, Level::Warn, "on the CPU"},
         }) {
        auto readings = good_machine();
        breaks(readings);
        CAPTURE(name);
        CAPTURE(advice);

        auto const finding = find(readings, name);

        CHECK(finding.level == level);
        CHECK(finding.advice.find(advice) != std::string::npos);
    }
}

TEST_CASE("doctor: a container's 64 MB /dev/shm is fine, for memfds do not live there") {
    auto readings = good_machine();
    readings.shm_bytes = 64ULL << 20U;

    auto const finding = find(readings, "/dev/shm");

    CHECK(finding.level == Level::Ok);
    CHECK(finding.means.find("memfds") != std::string::npos);
    CHECK(finding.advice.find("--shm-size") != std::string::npos);
}

TEST_CASE("doctor: a GPU is named by its UUID, with what it can share, and what containers need") {
    auto readings = good_machine();
    readings.gpu_device = readings.gpu_driver = true;
    readings.cuda_build = "CUDA 13.0";
    readings.ptrace_scope = 1;
    readings.gpus.push_back({.uuid = "GPU-0123",
                             .name = "a GPU",
                             .capability = "9.0",
                             .bytes = 80ULL << 30U,
                             .handles = true,
                             .descriptors = true,
                             .events = true});
    auto const good = find(readings, "gpu");
    CHECK(good.level == Level::Ok);
    CHECK(good.found.find("GPU-0123 (a GPU, compute capability 9.0, ") == 0);
    CHECK(good.found.find("shares by IPC handles, descriptors (VMM, pools), events") !=
          std::string::npos);
    CHECK(good.advice.find("--pid=container") != std::string::npos);
    CHECK(good.advice.find("/dev/shm") != std::string::npos);
    CHECK(good.means.find("ptrace_scope 1") != std::string::npos);

    readings.gpus.front().handles = readings.gpus.front().descriptors = false;
    CHECK(find(readings, "gpu").level == Level::Warn);
}

TEST_CASE("doctor: why a GPU cannot be used, with CUDA's own code") {
    auto readings = good_machine();
    readings.gpu_device = true;
    readings.cuda_build = "CUDA 13.0";
    readings.gpus_error = "no GPU: the driver is too old (cudaErrorInsufficientDriver, code 35)";
    auto const finding = find(readings, "gpu");
    CHECK(finding.level == Level::Warn);
    CHECK(finding.found.find("code 35") != std::string::npos);
    CHECK(finding.advice.find("--gpus all") != std::string::npos);
}

TEST_CASE("doctor: a GPU is named, and that this build cannot use it") {
    auto readings = good_machine();
    readings.gpu_device = readings.gpu_driver = true;
    readings.cuda_build = "no CUDA";

    CHECK(find(readings, "gpu").means.find("no CUDA backend") != std::string::npos);

    readings.gpu_device = readings.gpu_driver = false;
    auto const without = find(readings, "gpu");
    CHECK(without.level == Level::Ok);
    CHECK(without.found == "no NVIDIA device, no CUDA driver; built with no CUDA");
    CHECK(without.means ==
          "the CPU backend does the work; --backend cuda and libdkv_cuda are left out of this "
          "build");
}

TEST_CASE("doctor reads the first processor of x86 and of ARM") {
    auto const x86 = parse_cpuinfo(
        "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 amx_bf16\n\n"
        "processor\t: 1\nmodel name\t: Other\nflags\t\t: none\n");
    CHECK(x86.model == "Some CPU");
    CHECK(x86.has("amx_bf16"));
    CHECK_FALSE(x86.has("none"));
    CHECK_FALSE(x86.has("avx"));

    auto const arm = parse_cpuinfo("processor\t: 0\nFeatures\t: fp asimd bf16\n");
    CHECK(arm.model.empty());
    CHECK(arm.has("asimd"));
    CHECK(parse_cpuinfo("").flags.empty());
}

TEST_CASE("doctor reads control groups, from the innermost outwards") {
    CHECK(parse_cpu_max("150000 100000\n") == 1.5);
    CHECK_FALSE(parse_cpu_max("max 100000\n"));
    CHECK_FALSE(parse_cpu_max("-1\n 100000\n"));
    CHECK_FALSE(parse_cpu_max("1 0"));
    CHECK_FALSE(parse_cpu_max(""));
    CHECK(parse_bytes_or_max("1048576\n") == 1048576U);
    CHECK_FALSE(parse_bytes_or_max("max\n"));
    CHECK(cgroup_paths("1:cpu:/x\n0::/a.slice/b.scope\n") ==
          std::vector<std::string>{"/a.slice/b.scope", "/a.slice", "/"});
    CHECK(cgroup_paths("0::/\n") == std::vector<std::string>{"/"});
    CHECK(cgroup_paths("") == std::vector<std::string>{"/"});
}

TEST_CASE("doctor reads meminfo and mounts") {
    std::string const meminfo = "MemTotal:  2048 kB\nMemAvailable:  1024 kB\n";
    CHECK(parse_meminfo(meminfo, "MemAvailable") == 1048576);
    CHECK(parse_meminfo(meminfo, "Mem") == 0);
    CHECK(hides_processes("proc /proc proc rw,nosuid,hidepid=invisible 0 0\n"));
    CHECK(hides_processes("proc /proc proc rw,hidepid=2 0 0\n"));
    CHECK_FALSE(hides_processes("proc /proc proc rw,hidepid=0 0 0\n"));
    CHECK_FALSE(hides_processes("tmpfs /dev/shm tmpfs rw,hidepid=2 0 0\n"));
}

TEST_CASE("doctor reads this machine") {
    auto const readings = read_machine("ipc:///nowhere/dkv/dkvd.sock");

    CHECK(readings.cores > 0);
    CHECK(readings.memory_bytes > 0);
    CHECK(readings.files_max > 0);
    CHECK(readings.socket.path == "/nowhere/dkv");
    CHECK_FALSE(readings.socket.exists);
    CHECK(readings.memfd_error == "");
    CHECK(read_machine("tcp://127.0.0.1:9").socket.path.empty());
}

TEST_CASE("doctor prints the fact, what it means and what to do, aligned") {
    std::vector<Finding> const findings{
        {"memfd", Level::Ok, "made", "bytes go back", ""},
        {"open files", Level::Warn, "limit 256", "many sessions at once will be refused by it",
         "ulimit -n 4096"}};

    CHECK(findings_text(findings, {.color = false, .unicode = true, .columns = 60, .rows = 24}) ==
          "ok    memfd            made\n"
          "                       bytes go back\n"
          "warn  open files       limit 256\n"
          "                       many sessions at once will be refused\n"
          "                       by it\n"
          "                       → ulimit -n 4096\n"
          "\n"
          "Nothing failed, 1 to look at: dkv works here.\n");
}
