// dkv_compact_bench FOLDER [TOKENS] [REPEAT] [POLICY]: how fast a saved cache is compacted, next to
// how fast this machine reads its file; how much memory that takes; what a sweep costs next to one
// compact.
//
// The file is Llama-3-8B's: 32 layers, 32 query heads, 8 KV heads of 128 dims, bf16; 16,384 tokens
// are 2 GiB. It stays in FOLDER for the next run; what is measured is with a warm page cache. The
// best of several; "by CPU" is the ratio of CPU times, which a busy machine leaves as they are.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>

#include "sidecar/offline/compact.h"
#include "sidecar/offline/sweep.h"
#include "tools/bench/compact/machine.h"
#include "tools/bench/compact/made_file.h"

namespace {

using namespace dkv;

constexpr char const* kPolicies[] = {"auto",         "snapkv", "pyramidkv", "dynamickv",
                                     "streamingllm", "knorm",  "keydiff"};
constexpr std::uint32_t kCapacities[] = {64, 128, 256, 512, 1024, 2048};

struct Timing {
    double seconds = 0;
    double cpu_seconds = 0;    ///< Of all threads, in user and in kernel space.
    double anonymous_mib = 0;  ///< Beyond the page cache, at most.
};

/// The best of several.
Timing best_of(int repeat, std::function<void()> const& body) {
    Timing best{.seconds = 1e30, .cpu_seconds = 1e30};
    for (int i = 0; i < repeat; ++i) {
        bench::PeakMemory memory;
        double const cpu_begin = bench::cpu_seconds();
        auto const begin = std::chrono::steady_clock::now();
        body();
        std::chrono::duration<double> const taken = std::chrono::steady_clock::now() - begin;
        best.seconds = std::min(best.seconds, taken.count());
        best.cpu_seconds = std::min(best.cpu_seconds, bench::cpu_seconds() - cpu_begin);
        best.anonymous_mib = std::max(best.anonymous_mib, memory.anonymous_mib());
    }
    return best;
}

template <class T>
T must(Result<T> result) {
    if (result) return std::move(result).value();
    std::fprintf(stderr, "dkv_compact_bench: %s\n", result.error().message.c_str());
    std::exit(1);
}

Timing compact(std::string const& policy,
               std::filesystem::path const& file,
               bool verify,
               int repeat) {
    auto const backend = make_cpu_backend();
    offline::CompactRequest const request{.input = file,
                                          .output = file.parent_path() / "compacted.dkv",
                                          .policy = {.name = policy, .capacity = 512},
                                          .verify = verify,
                                          .force = true};
    return best_of(repeat, [&] { must(offline::compact(*backend, request)); });
}

Timing sweep(std::filesystem::path const& file,
             std::initializer_list<char const*> policies,
             bool with_error,
             int repeat) {
    auto const backend = make_cpu_backend();
    std::vector<PolicyRequest> points;
    for (char const* policy : policies)
        for (std::uint32_t const capacity : kCapacities)
            points.push_back({.name = policy, .capacity = capacity});
    return best_of(repeat, [&] {
        auto const cache = must(open_cache(file));
        must(offline::sweep(*backend, *cache, points, with_error));
    });
}

}  // namespace

int main(int argc, char** argv) {
    int const tokens_asked = argc > 2 ? std::atoi(argv[2]) : 16384;
    int const repeat = argc > 3 ? std::atoi(argv[3]) : 5;
    std::string const only = argc > 4 ? argv[4] : "";
    bool const known = only.empty() || std::ranges::find(kPolicies, only) != std::end(kPolicies);
    if (argc < 2 || tokens_asked < 1 || repeat < 1 || !known) {
        std::fputs("dkv_compact_bench FOLDER [TOKENS] [REPEAT] [POLICY]\n", stderr);
        return 2;
    }
    auto const tokens = static_cast<std::uint32_t>(tokens_asked);
    auto const file = must(bench::made_file(argv[1], tokens));
    auto const bytes = static_cast<double>(std::filesystem::file_size(file));

    Timing const read = best_of(repeat, [&] { must(bench::read_file(file)); });
    std::printf("%s: %.2f GB\nread() by every core: %.2f GB/s\n\n", file.c_str(), bytes / 1e9,
                bytes / read.seconds / 1e9);
    std::printf("%-14s %8s %8s %8s %8s\n", "compact to 512", "GB/s", "of read", "by CPU",
                "MiB anon");
    Timing dynamickv;
    for (char const* policy : kPolicies)
        for (bool const verify : {true, false}) {
            if (!only.empty() && only != policy) continue;
            Timing const timing = compact(policy, file, verify, repeat);
            std::printf("%-14s %8.2f %8.2f %8.2f %8.0f%s\n", policy, bytes / timing.seconds / 1e9,
                        read.seconds / timing.seconds, read.cpu_seconds / timing.cpu_seconds,
                        timing.anonymous_mib, verify ? "" : "  unverified");
            if (std::string(policy) == "dynamickv" && verify) dynamickv = timing;
        }
    if (!only.empty()) return 0;
    std::printf("\n%-44s %8s %8s %8s\n", "sweep, 5 policies x 6 capacities", "seconds", "compacts",
                "by CPU");
    auto const line = [&](char const* name, Timing const& timing) {
        std::printf("%-44s %8.2f %8.2f %8.2f\n", name, timing.seconds,
                    timing.seconds / dynamickv.seconds, timing.cpu_seconds / dynamickv.cpu_seconds);
    };
    line("auto snapkv pyramidkv dynamickv streamingllm",
         sweep(file, {"auto", "snapkv", "pyramidkv", "dynamickv", "streamingllm"}, false, repeat));
    line("snapkv dynamickv streamingllm knorm keydiff",
         sweep(file, {"snapkv", "dynamickv", "streamingllm", "knorm", "keydiff"}, false, repeat));
    line("the first, with the attention's error",
         sweep(file, {"auto", "snapkv", "pyramidkv", "dynamickv", "streamingllm"}, true, 1));
    return 0;
}
