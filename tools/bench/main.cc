// dkv_bench [--threads=N] [Google Benchmark's own flags]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tools/bench/bench.h"

namespace {

constexpr char kFlag[] = "--threads=";

/// The value of --threads=N, which is taken out of argv; 1 without.
unsigned take_threads(int& argc, char** argv) {
    unsigned threads = 1;
    int kept = 0;
    for (int i = 0; i < argc; ++i) {
        if (std::strncmp(argv[i], kFlag, sizeof kFlag - 1) == 0)
            threads = static_cast<unsigned>(std::strtoul(argv[i] + sizeof kFlag - 1, nullptr, 10));
        else
            argv[kept++] = argv[i];
    }
    argc = kept;
    return threads == 0 ? 1 : threads;
}

}  // namespace

int main(int argc, char** argv) {
    unsigned const threads = take_threads(argc, argv);
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;

    auto const backend = dkv::make_cpu_backend(threads);
    auto const ceiling = dkv::bench::measure_ceiling(threads);
    auto const gigabytes = [](double rate) { return std::to_string(rate / 1e9); };
    benchmark::AddCustomContext("backend", std::string(backend->name()));
    benchmark::AddCustomContext("ceiling_read_GB/s", gigabytes(ceiling.read));
    benchmark::AddCustomContext("ceiling_copy_GB/s", gigabytes(ceiling.copy));

    dkv::bench::register_score(*backend, ceiling);
    dkv::bench::register_accumulate(*backend, ceiling);
    dkv::bench::register_key_score(*backend, ceiling);
    dkv::bench::register_surrogate(*backend, ceiling);
    dkv::bench::register_pool(*backend, ceiling);
    dkv::bench::register_select(*backend, ceiling);
    dkv::bench::register_sum(*backend, ceiling);
    dkv::bench::register_tally(*backend, ceiling);
    dkv::bench::register_gather(*backend, ceiling);
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
}
