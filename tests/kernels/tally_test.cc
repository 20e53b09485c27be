#include "kernels/ops/tally.h"

#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/support/backends.h"
#include "tests/support/reference.h"

using namespace dkv;

namespace {

using Layers = std::vector<std::vector<float>>;

std::vector<std::uint64_t> tally(Backend& backend,
                                 Layers const& layers,
                                 std::uint32_t heads,
                                 std::uint32_t tokens,
                                 std::uint64_t total) {
    std::vector<std::span<float const>> const spans(layers.begin(), layers.end());
    std::vector<std::uint64_t> counts(layers.size() * heads, 77);
    REQUIRE(backend.tally({spans, counts, heads, tokens, total}));
    return counts;
}

using Counts = std::vector<std::uint64_t>;

}  // namespace

TEST_CASE("tally counts where the largest scores of all layers fall") {
    test::for_each_backend([](Backend& backend) {
        Layers const layers{{9, 1, 2,    // layer 0, head 0
                             3, 8, 7},   //          head 1
                            {6, 0, 0,    // layer 1, head 0
                             0, 5, 4}};  //          head 1
        CHECK(tally(backend, layers, 2, 3, 1) == Counts{1, 0, 0, 0});
        CHECK(tally(backend, layers, 2, 3, 4) == Counts{1, 2, 1, 0});
        CHECK(tally(backend, layers, 2, 3, 6) == Counts{1, 2, 1, 2});
    });
}

TEST_CASE("tally gives ties to the lower layer, then to the lower head") {
    test::for_each_backend([](Backend& backend) {
        Layers const layers{{1, 1, 1, 1}, {1, 2, 1, 1}};
        CHECK(tally(backend, layers, 2, 2, 1) == Counts{0, 0, 1, 0});
        CHECK(tally(backend, layers, 2, 2, 2) == Counts{1, 0, 1, 0});
        CHECK(tally(backend, layers, 2, 2, 4) == Counts{2, 1, 1, 0});
        CHECK(tally(backend, layers, 2, 2, 6) == Counts{2, 2, 2, 0});
        CHECK(tally(backend, {{0, -0.f}, {-0.f, 0}}, 1, 2, 3) == Counts{2, 1});
    });
}

TEST_CASE("tally gives ties to the first of hundreds of heads") {
    test::for_each_backend([](Backend& backend) {
        Layers const layers(60, std::vector<float>(20, 1));  // 60 layers of 10 heads of 2 tokens.
        Counts want(600);
        for (std::size_t head = 0; head < 300; ++head)
            want[head] = 2;
        want[300] = 1;
        CHECK(tally(backend, layers, 10, 2, 601) == want);
    });
}

TEST_CASE("a total of nothing or of more than everything is counted as such") {
    test::for_each_backend([](Backend& backend) {
        Layers const layers{{1, 2, 3}, {4, 5, 6}};
        CHECK(tally(backend, layers, 1, 3, 0) == Counts{0, 0});
        CHECK(tally(backend, layers, 1, 3, 6) == Counts{3, 3});
        CHECK(tally(backend, layers, 1, 3, std::numeric_limits<std::uint64_t>::max()) ==
              Counts{3, 3});
        CHECK(tally(backend, {{}, {}}, 2, 0, 5) == Counts{0, 0, 0, 0});
        CHECK(tally(backend, {}, 2, 3, 5).empty());
    });
}

TEST_CASE("tally counts NaN as the smallest score") {
    test::for_each_backend([](Backend& backend) {
        float const nan = std::nanf("");
        float const infinity = std::numeric_limits<float>::infinity();
        Layers const layers{{nan, nan, nan}, {-infinity, nan, -1}};
        CHECK(tally(backend, layers, 1, 3, 2) == Counts{0, 2});
        CHECK(tally(backend, layers, 1, 3, 4) == Counts{2, 2});
    });
}

TEST_CASE("tally is exact, whatever the scores") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    test::for_each_backend([&](Backend& backend) {
        for (std::uint32_t const tokens : {1u, 33u, 900u}) {
            for (int kind = 0; kind < 3; ++kind) {
                CAPTURE(tokens);
                CAPTURE(kind);
                std::uint32_t const heads = 1 + static_cast<std::uint32_t>(random() % 4);
                Layers layers(1 + random() % 5);
                for (auto& layer : layers) {
                    for (std::uint32_t i = 0; i < heads * tokens; ++i) {
                        auto const bits = static_cast<std::uint32_t>(random());
                        layer.push_back(kind == 0 ? std::bit_cast<float>(bits)
                                        : kind == 1
                                            ? static_cast<float>(bits % 4)
                                            : 1.f + static_cast<float>(bits % 99) * 0x1p-23f);
                    }
                }
                auto const total = random() % (layers.size() * heads * tokens + 2);
                CAPTURE(total);

                auto const counts = tally(backend, layers, heads, tokens, total);

                CHECK(counts == test::reference_tally(layers, heads, tokens, total));
            }
        }
    });
}

TEST_CASE("tally compares layers by their scales, and takes skipped tokens for 0") {
    test::for_each_backend([](Backend& backend) {
        std::vector<float> const large{90, 20, 10, 30};
        std::vector<float> const small{.4F, .3F, .2F, .1F};
        std::array<std::span<float const>, 2> const layers{large, small};
        std::array<std::uint64_t, 2> counts{};
        auto const count = [&](std::uint64_t total, std::vector<float> scales, std::uint32_t skip) {
            REQUIRE(backend.tally({layers, counts, 1, 4, total, scales, skip}));
            return Counts(counts.begin(), counts.end());
        };

        CHECK(count(4, {}, 0) == Counts{4, 0});
        CHECK(count(4, {.01F, 1}, 0) == Counts{2, 2});  // .9 .4 .3 .3: the tie to the lower layer.
        CHECK(count(2, {.01F, 1}, 1) == Counts{1, 1});  // .3 .3
        CHECK(count(3, {0, 1}, 0) == Counts{0, 3});
        CHECK(count(6, {}, 4) == Counts{4, 2});  // Nothing but zeros.
        CHECK(count(6, {}, 400) == Counts{4, 2});
        CHECK(large == std::vector<float>{90, 20, 10, 30});
    });
}

TEST_CASE("tally is exact with scales and skipped tokens too") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    test::for_each_backend([&](Backend& backend) {
        for (std::uint32_t const tokens : {1u, 33u, 5000u}) {  // The last one: two blocks.
            CAPTURE(tokens);
            std::uint32_t const heads = 1 + static_cast<std::uint32_t>(random() % 3);
            Layers layers(1 + random() % 4);
            std::vector<float> scales;
            for (auto& layer : layers) {
                for (std::uint32_t i = 0; i < heads * tokens; ++i)
                    layer.push_back(static_cast<float>(random() % 999) * 0x1p-9F);
                scales.push_back(static_cast<float>(random() % 5) * 0.3F);
            }
            std::vector<std::span<float const>> const spans(layers.begin(), layers.end());
            auto const total = random() % (layers.size() * heads * tokens + 1);
            auto const skip = static_cast<std::uint32_t>(random() % (tokens + 3));
            CAPTURE(total);
            CAPTURE(skip);
            Counts counts(layers.size() * heads);

            REQUIRE(backend.tally({spans, counts, heads, tokens, total, scales, skip}));

            CHECK(counts == test::reference_tally(layers, heads, tokens, total, scales, skip));
        }
    });
}

TEST_CASE("tally refuses spans that disagree") {
    std::vector<float> const six(6);
    std::vector<float> const five(5);
    std::array<std::span<float const>, 2> const layers{six, five};
    std::array<std::uint64_t, 4> counts{};
    auto const layer = check(TallyArgs{layers, counts, 2, 3, 1});
    REQUIRE_FALSE(layer);
    CHECK(layer.error().code == ErrorCode::InvalidArgument);
    CHECK(layer.error().message == "layers[1] has 5 elements, not [2, 3]");

    auto const count = check(TallyArgs{std::span(layers).first(1), counts, 2, 3, 1});
    REQUIRE_FALSE(count);
    CHECK(count.error().message == "counts has 4 elements, not [1, 2]");

    std::array<float, 3> const scales{};
    std::array<std::span<float const>, 2> const good{six, six};
    auto const scale = check(TallyArgs{good, counts, 2, 3, 1, scales});
    REQUIRE_FALSE(scale);
    CHECK(scale.error().message == "scales has 3 elements, not [2]");
}
