#include "tools/bench/bench.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <ctime>
#include <thread>

namespace dkv::bench {
namespace {

constexpr std::size_t kCeilingBytes = std::size_t{256} << 20;  // No cache holds it.

double seconds(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

/// The best of a few runs, in bytes per second; `body(begin, bytes)` runs on every thread.
template <class Body>
double best_rate(unsigned threads, double bytes, Body const& body) {
    clockid_t const clock = threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    double best = 0;
    for (int run = 0; run < 5; ++run) {
        double const start = seconds(clock);
        std::vector<std::jthread> running;
        std::size_t const part = kCeilingBytes / threads;
        for (unsigned i = 0; i < threads; ++i)
            running.emplace_back([&body, i, part] { body(i * part, part); });
        running.clear();
        best = std::max(best, bytes / (seconds(clock) - start));
    }
    return best;
}

std::uint64_t sum_words(std::byte const* from, std::size_t bytes) {
    std::uint64_t sums[8]{};
    for (std::size_t at = 0; at + 64 <= bytes; at += 64) {
        std::uint64_t words[8];
        std::memcpy(words, from + at, sizeof words);
        for (int i = 0; i < 8; ++i)
            sums[i] += words[i];
    }
    std::uint64_t sum = 0;
    for (std::uint64_t const part : sums)
        sum += part;
    return sum;
}

}  // namespace

Ceiling measure_ceiling(unsigned threads) {
    std::vector<std::byte> const source(kCeilingBytes, std::byte{1});
    std::vector<std::byte> target(kCeilingBytes);
    Ceiling ceiling;
    ceiling.threads = threads;
    ceiling.read = best_rate(threads, kCeilingBytes, [&](std::size_t begin, std::size_t bytes) {
        benchmark::DoNotOptimize(sum_words(source.data() + begin, bytes));
    });
    ceiling.copy =
        best_rate(threads, 2.0 * kCeilingBytes, [&](std::size_t begin, std::size_t bytes) {
            std::memcpy(target.data() + begin, source.data() + begin, bytes);
            benchmark::DoNotOptimize(target.data());
        });
    return ceiling;
}

Rows::Rows(Dtype dtype, std::uint32_t heads, std::uint32_t tokens, std::uint32_t head_dim)
    : view(dense_rows(nullptr, dtype, heads, tokens, head_dim)) {
    bytes.resize(extent_bytes(view).value());
    view.data = bytes.data();
    std::mt19937 random(1);
    std::size_t const elements = bytes.size() / bytes_of(dtype);
    for (std::size_t i = 0; i < elements; ++i) {  // Sign, and an exponent that makes it below 2.
        auto const bits = static_cast<std::uint32_t>(random());
        float const value = std::bit_cast<float>((bits & 0x807fffffu) | 0x3f000000u);
        auto const half = static_cast<std::uint16_t>((bits & 0x83ffu) | 0x3800u);
        auto const brain = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
        if (dtype == Dtype::F32)
            std::memcpy(bytes.data() + 4 * i, &value, 4);
        else
            std::memcpy(bytes.data() + 2 * i, dtype == Dtype::F16 ? &half : &brain, 2);
    }
}

std::vector<float> random_scores(std::size_t count, std::uint32_t seed) {
    std::mt19937 random(seed);
    std::lognormal_distribution<float> attention(-9, 2);
    std::vector<float> scores(count);
    for (float& score : scores)
        score = attention(random);
    return scores;
}

}  // namespace dkv::bench
