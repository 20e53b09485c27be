// A device gives what the CPU gives, whatever the shape: bit for bit where the contract is exact.
// Shapes are small and odd on purpose: partial warps, one block and many, rows that begin at every
// distance from 16 bytes.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <random>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

using namespace dkv;
using test::Layout;
using test::Rows;

namespace {

class Random {
public:
    std::uint32_t below(std::uint64_t end) {
        return static_cast<std::uint32_t>(engine_() % std::max<std::uint64_t>(end, 1));
    }
    /// As many small ones as large ones.
    std::uint32_t size(std::uint32_t most) {
        double const power = std::log2(static_cast<double>(most)) * below(1001) / 1000.0;
        return std::clamp(static_cast<std::uint32_t>(std::exp2(power)), 1U, most);
    }
    template <class List>
    auto pick(List const& list) {
        return list[below(list.size())];
    }
    /// One kind of scores: any bits, few values and -0, neighbours in f32, softmax's, plateaus.
    std::vector<float> scores(std::size_t count) {
        auto const kind = below(5);
        std::vector<float> all(count);
        for (std::size_t i = 0; i < count; ++i) {
            auto const bits = static_cast<std::uint32_t>(engine_());
            float& score = all[i];
            if (kind == 0) score = std::bit_cast<float>(bits);
            if (kind == 1)
                score = (static_cast<float>(bits % 5) - 2) * (bits % 2 == 0 ? 1.F : -1.F);
            if (kind == 2) score = 1.F + static_cast<float>(bits % 999) * 0x1p-23F;
            if (kind == 3) score = static_cast<float>(std::pow(bits * 0x1p-32, 9));
            if (kind == 4) score = i % 7 == 0 ? static_cast<float>(bits) * 0x1p-32F : all[i - 1];
        }
        return all;
    }
    std::mt19937& engine() { return engine_; }

private:
    std::mt19937 engine_{seed()};
    static unsigned seed() {
        unsigned const seed = std::random_device{}();
        MESSAGE("seed ", seed);
        return seed;
    }
};

/// body(cpu, device, random), where there is a device.
template <class Body>
void compare(int rounds, Body body) {
    auto const device = test::device_from_host();
    if (!device) return;
    auto const cpu = make_cpu_backend(1);
    Random random;
    for (int round = 0; round < rounds; ++round) {
        CAPTURE(round);
        body(*cpu, *device, random);
    }
}

bool same_bits(std::span<float const> a, std::span<float const> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
        return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y) ||
               (std::isnan(x) && std::isnan(y));
    });
}

}  // namespace

TEST_CASE("a device selects what the CPU selects") {
    compare(150, [](Backend& cpu, Backend& device, Random& random) {
        std::uint32_t const heads = 1 + random.below(4);
        std::uint32_t const tokens = random.size(20000);
        std::size_t const skew = random.below(4);
        auto const all = random.scores(skew + std::size_t{heads} * tokens);
        std::vector<std::uint32_t> keep(heads);
        std::size_t total = 0;
        for (auto& count : keep) {
            count = random.below(8) == 0 ? tokens : std::min(tokens, random.size(tokens + 1) - 1);
            total += count;
        }
        INFO(heads, " heads of ", tokens, " tokens, ", total, " kept, ", skew, " floats off");
        std::vector<std::int32_t> want(total);
        std::vector<std::int32_t> got(total, -1);
        auto const scores = std::span(all).subspan(skew);

        REQUIRE(cpu.select({scores, keep, want, tokens}));
        REQUIRE(device.select({scores, keep, got, tokens}));

        CHECK(got == want);
    });
}

TEST_CASE("a device tallies what the CPU tallies") {
    compare(100, [](Backend& cpu, Backend& device, Random& random) {
        std::uint32_t const heads = 1 + random.below(3);
        std::uint32_t const tokens = random.size(12000);
        std::size_t const count = 1 + random.below(4);
        std::vector<std::vector<float>> layers;
        std::vector<float> scales;
        for (std::size_t layer = 0; layer < count; ++layer) {
            layers.push_back(random.scores(std::size_t{heads} * tokens));
            scales.push_back(static_cast<float>(random.below(7)) * 0.3F);
        }
        if (random.below(2) == 0) scales.clear();
        std::vector<std::span<float const>> const spans(layers.begin(), layers.end());
        auto const total = random.below(count * heads * tokens + 1);
        std::uint32_t const skip = random.below(3) == 0 ? random.below(tokens + 3) : 0;
        INFO(count, " layers, ", heads, " heads, ", tokens, " tokens, ", total, ", skip ", skip);
        std::vector<std::uint64_t> want(count * heads);
        std::vector<std::uint64_t> got(count * heads, 7);

        REQUIRE(cpu.tally({spans, want, heads, tokens, total, scales, skip}));
        REQUIRE(device.tally({spans, got, heads, tokens, total, scales, skip}));

        CHECK(got == want);
    });
}

TEST_CASE("a device selects and tallies among a million tokens") {
    compare(1, [](Backend& cpu, Backend& device, Random& random) {
        constexpr std::uint32_t kTokens = 1'000'003;
        auto const scores = random.scores(kTokens);
        std::uint32_t const keep = 70'000;
        std::vector<std::int32_t> want(keep);
        std::vector<std::int32_t> got(keep);
        REQUIRE(cpu.select({scores, {&keep, 1}, want, kTokens}));
        REQUIRE(device.select({scores, {&keep, 1}, got, kTokens}));
        CHECK(got == want);

        std::array<std::span<float const>, 2> const layers{scores, scores};
        std::array<std::uint64_t, 2> counts{};
        std::array<std::uint64_t, 2> others{};
        REQUIRE(cpu.tally({layers, counts, 1, kTokens, 123'457}));
        REQUIRE(device.tally({layers, others, 1, kTokens, 123'457}));
        CHECK(others == counts);
    });
}

TEST_CASE("a device gathers what the CPU gathers, and nothing beside it") {
    compare(200, [](Backend& cpu, Backend& device, Random& random) {
        auto const dtype = random.pick(std::array{Dtype::F32, Dtype::F16, Dtype::Bf16});
        auto const layout = random.pick(
            std::array{Layout::HeadMajor, Layout::TokenMajor, Layout::DimMajor, Layout::Odd});
        std::uint32_t const heads = 1 + random.below(3);
        std::uint32_t const tokens = random.size(600);
        std::uint32_t const dim =
            random.pick(std::array{1U, 2U, 3U, 8U, 20U, 64U, 80U, 128U, 300U});
        Rows rows(dtype, heads, tokens, dim, layout);
        for (std::byte& byte : rows.bytes)
            byte = static_cast<std::byte>(random.below(256));
        std::vector<std::uint32_t> lengths(heads);
        std::vector<std::uint64_t> offsets(heads);
        std::vector<std::int32_t> ids;
        std::uint64_t end = 0;
        std::uint64_t const gap = random.pick(std::array{1U, 2U, 4U, 8U, 16U});
        for (std::uint32_t head = 0; head < heads; ++head) {
            lengths[head] = random.below(3) == 0 ? 0 : random.size(200);
            end = (end + gap - 1) / gap * gap + gap * random.below(2);
            offsets[head] = end;
            end += lengths[head] * rows.view.row_bytes();
            for (std::uint32_t i = 0; i < lengths[head]; ++i)
                ids.push_back(static_cast<std::int32_t>(random.below(tokens)));
        }
        INFO(name_of(dtype), ", layout ", static_cast<int>(layout), ", ", heads, " heads, ", tokens,
             " tokens, dim ", dim, ", gap ", gap);
        std::vector<std::byte> want(end + 5, std::byte{0xee});
        auto got = want;

        REQUIRE(cpu.gather({rows.view, ids, lengths, want, offsets}));
        REQUIRE(device.gather({rows.view, ids, lengths, got, offsets}));

        CHECK(got == want);
    });
}

TEST_CASE("a device pools as the CPU does: short windows to the bit, long averages to an ulp") {
    compare(120, [](Backend& cpu, Backend& device, Random& random) {
        std::uint32_t const heads = 1 + random.below(3);
        std::uint32_t const tokens = random.size(6000);
        std::uint32_t const kernel = 2 * (random.size(random.below(8) == 0 ? 20000 : 60) - 1) + 1;
        auto const pool = random.pick(std::array{Pool::Max, Pool::Avg});
        auto scores = random.scores(std::size_t{heads} * tokens);
        bool const exact = pool == Pool::Max || kernel <= 31;
        if (!exact)
            for (float& score : scores)  // Sums that do not cancel.
                score = std::isfinite(score) ? std::min(std::abs(score), 1.F) : 1.F;
        INFO(heads, " heads of ", tokens, " tokens, kernel ", kernel, ", exact: ", exact);
        std::vector<float> want(scores.size());
        std::vector<float> got(scores.size());

        REQUIRE(cpu.pool({scores, want, heads, tokens, kernel, pool}));
        REQUIRE(device.pool({scores, got, heads, tokens, kernel, pool}));

        if (exact) CHECK(same_bits(got, want));
        std::size_t off = 0;
        for (std::size_t i = 0; i < got.size() && !exact; ++i)
            off += got[i] > std::nextafter(want[i], INFINITY) ||
                   got[i] < std::nextafter(want[i], -INFINITY);
        CHECK(off == 0);
    });
}

TEST_CASE("a device adds up what the CPU adds up, and the same bits each time and everywhere") {
    compare(80, [](Backend& cpu, Backend& device, Random& random) {
        std::uint32_t const heads = 1 + random.below(4);
        std::uint32_t const tokens = random.size(50000);
        std::size_t const skew = random.below(4);
        auto all = random.scores(skew + std::size_t{heads} * tokens);
        for (float& score : all)
            if (!std::isnan(score)) score = std::min(std::abs(score), 1.F);
        std::uint32_t const skip = random.below(3) == 0 ? random.below(tokens + 3) : 0;
        INFO(heads, " heads of ", tokens, " tokens, skip ", skip);
        auto const scores = std::span(all).subspan(skew);
        std::vector<float> const elsewhere(scores.begin(), scores.end());
        std::vector<double> want(heads);
        std::vector<double> got(heads, -1);
        std::vector<double> again(heads, -2);

        REQUIRE(cpu.sum({scores, want, heads, tokens, skip}));
        REQUIRE(device.sum({scores, got, heads, tokens, skip}));
        REQUIRE(device.sum({elsewhere, again, heads, tokens, skip}));

        CHECK(again == got);
        for (std::uint32_t head = 0; head < heads; ++head)
            CHECK(std::abs(got[head] - want[head]) <= 1e-13 * want[head]);
    });
}

TEST_CASE("a device scores keys as the CPU does, and the same bits each time") {
    compare(80, [](Backend& cpu, Backend& device, Random& random) {
        auto const dtype = random.pick(std::array{Dtype::F32, Dtype::F16, Dtype::Bf16});
        auto const layout = random.pick(
            std::array{Layout::HeadMajor, Layout::TokenMajor, Layout::DimMajor, Layout::Odd});
        auto const dim = random.pick(std::array{1U, 5U, 8U, 64U, 80U, 96U, 128U, 256U, 288U, 520U});
        std::uint32_t const heads = 1 + random.below(3);
        std::uint32_t const tokens = random.size(1500);
        std::uint32_t const window = random.below(tokens);
        auto const measure = random.pick(std::array{KeyMeasure::Norm, KeyMeasure::Difference});
        Rows keys(dtype, heads, tokens, dim, layout);
        std::normal_distribution<float> normal;
        keys.fill([&](auto, auto token, auto axis) {
            return token % 97 == 5 ? 0.F : normal(random.engine()) + (axis == 0 ? 2.F : 0.F);
        });
        if (random.below(3) == 0) keys.set(0, random.below(tokens), 0, NAN);
        INFO(name_of(dtype), ", layout ", static_cast<int>(layout), ", ", heads, " heads, ", tokens,
             " tokens, window ", window, ", dim ", dim, ", measure ", static_cast<int>(measure));
        std::vector<float> want(std::size_t{heads} * (tokens - window));
        auto got = want;
        auto again = want;

        REQUIRE(cpu.key_score({keys.view, want, window, measure}));
        REQUIRE(device.key_score({keys.view, got, window, measure}));
        REQUIRE(device.key_score({keys.view, again, window, measure}));

        CHECK(same_bits(again, got));
        double worst = 0;
        for (std::size_t i = 0; i < want.size(); ++i)
            worst = std::max(worst, static_cast<double>(std::abs(got[i] - want[i]) /
                                                        std::max(1.F, std::abs(want[i]))));
        CHECK(worst < 2e-6);
    });
}
