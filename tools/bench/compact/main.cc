// dkv_compact_bench FOLDER [TOKENS] [REPEAT] [POLICY]: how fast a saved cache is compacted, next to
// how fast this machine reads its file; how much memory that takes; what a sweep costs next to one
// compact.
//
// The file is Llama-3-8B's: 32 layers, 32 query heads, 8 KV heads of 128 dims, bf16; 16,384 tokens
// are 2 GiB. It stays in FOLDER for the next run; what is measured is with a warm page cache. Every
// run is paired with a read() of the file just before it. Ratios are of medians: "of read" of
// seconds, "by CPU" of the CPU time of all threads, which other programs change less.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/saved/offline/compact.h"
#include "cli/saved/offline/sweep.h"
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

double median(std::vector<double> values) {
    auto const middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::ranges::nth_element(values, middle);
    return *middle;
}

/// What the bodies take, met in turn: a machine that is slow for a while is slow for all of them.
/// Medians of times, the most of memory.
std::vector<Timing> medians(int repeat, std::span<std::function<void()> const> bodies) {
    std::vector<std::vector<double>> seconds(bodies.size());
    auto cpu_seconds = seconds;
    std::vector<Timing> timings(bodies.size());
    for (int i = 0; i < repeat; ++i)
        for (std::size_t body = 0; body < bodies.size(); ++body) {
            bench::PeakMemory memory;
            double const cpu_begin = bench::cpu_seconds();
            auto const begin = std::chrono::steady_clock::now();
            bodies[body]();
            std::chrono::duration<double> const taken = std::chrono::steady_clock::now() - begin;
            seconds[body].push_back(taken.count());
            cpu_seconds[body].push_back(bench::cpu_seconds() - cpu_begin);
            timings[body].anonymous_mib =
                std::max(timings[body].anonymous_mib, memory.anonymous_mib());
        }
    for (std::size_t body = 0; body < bodies.size(); ++body) {
        timings[body].seconds = median(seconds[body]);
        timings[body].cpu_seconds = median(cpu_seconds[body]);
    }
    return timings;
}

template <class T>
T must(Result<T> result) {
    if (result) return std::move(result).value();
    std::fprintf(stderr, "dkv_compact_bench: %s\n", result.error().message.c_str());
    std::exit(1);
}

std::function<void()> compact(std::string const& policy,
                              std::filesystem::path const& file,
                              bool verify) {
    return [=, backend = std::shared_ptr<Backend>(make_cpu_backend())] {
        offline::CompactRequest const request{.input = file,
                                              .output = file.parent_path() / "compacted.dkv",
                                              .policy = {.name = policy, .capacity = 512},
                                              .verify = verify,
                                              .force = true};
        must(offline::compact(*backend, request));
    };
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
    std::function<void()> const body = [&] {
        auto const cache = must(open_cache(file));
        must(offline::sweep(*backend, *cache, points, with_error));
    };
    return medians(repeat, std::span(&body, 1)).front();
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

    std::function<void()> const read = [&] { must(bench::read_file(file)); };
    read();  // Into the page cache.
    std::printf("%s: %.2f GB\n\n", file.c_str(), bytes / 1e9);
    std::printf("%-14s %8s %8s %8s %8s %8s %8s\n", "compact to 512", "read", "GB/s", "of read",
                "CPU s", "by CPU", "MiB anon");
    Timing dynamickv;
    for (char const* policy : kPolicies) {
        if (!only.empty() && only != policy) continue;
        std::array const bodies{read, compact(policy, file, true), compact(policy, file, false)};
        auto const timings = medians(repeat, bodies);
        for (std::size_t i = 1; i < timings.size(); ++i)
            std::printf("%-14s %8.2f %8.2f %8.2f %8.2f %8.2f %8.0f%s\n", policy,
                        bytes / timings[0].seconds / 1e9, bytes / timings[i].seconds / 1e9,
                        timings[0].seconds / timings[i].seconds, timings[i].cpu_seconds,
                        timings[0].cpu_seconds / timings[i].cpu_seconds, timings[i].anonymous_mib,
                        i == 1 ? "" : "  unverified");
        if (std::string(policy) == "dynamickv") dynamickv = timings[1];
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
