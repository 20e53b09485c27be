#include "kernels/ops/accumulate.h"

#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "tests/kernels/score_call.h"
#include "tests/support/backends.h"
#include "tests/support/reference.h"

using namespace dkv;
using test::Layout;
using test::Rows;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Shape {
    std::uint32_t kv_heads;
    std::uint32_t group;
    std::uint32_t tokens;
    std::uint32_t window;
    std::uint32_t head_dim;
};

/// Every token is a query.
struct Call : test::AttendingCall<AccumulateArgs> {
    Call(Shape const& shape, Dtype dtype, GroupReduce reduce, Layout layout = Layout::HeadMajor)
        : AttendingCall({shape.kv_heads, shape.group, shape.window, shape.tokens, shape.head_dim},
                        shape.tokens,
                        dtype,
                        reduce,
                        layout) {
        args.window = shape.window;
    }
};

}  // namespace

TEST_CASE("accumulate adds up what every query gives to each token it sees") {
    test::for_each_backend([](Backend& backend) {
        // One head, one dimension: q·k = k for all three queries, and e^k = 1, 2, 3.
        Call call({1, 1, 3, 1, 1}, Dtype::F32, GroupReduce::Mean);
        call.queries.fill([](auto...) { return 1.f; });
        call.keys.fill(
            [](auto, auto token, auto) { return std::log(static_cast<float>(token + 1)); });

        REQUIRE(backend.accumulate(call.args));
        // The queries see 1, 1 + 2 and 1 + 2 + 3.
        CHECK(call.scores[0] == doctest::Approx(1 + 1.0 / 3 + 1.0 / 6));
        CHECK(call.scores[1] == doctest::Approx(2.0 / 3 + 2.0 / 6));

        call.args.per_query = true;
        REQUIRE(backend.accumulate(call.args));
        CHECK(call.scores[0] == doctest::Approx((1 + 1.0 / 3 + 1.0 / 6) / 3));
        CHECK(call.scores[1] == doctest::Approx((2.0 / 3 + 2.0 / 6) / 2));
    });
}

TEST_CASE("accumulate is the reference at every shape, dtype, layout and reduction") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto const pick = [&](auto const& list) { return list[random() % list.size()]; };
    test::for_each_backend([&](Backend& backend) {
        for (int round = 0; round < 40; ++round) {
            Shape shape{};
            shape.kv_heads = 1 + static_cast<std::uint32_t>(random() % 3);
            shape.group = pick(std::array{1u, 3u, 4u, 7u, 8u});
            shape.head_dim = pick(std::array{1u, 33u, 64u, 80u});
            auto const most = std::sqrt(1.5e6 / (shape.kv_heads * shape.group * shape.head_dim));
            shape.tokens =
                1 + static_cast<std::uint32_t>(random() % static_cast<unsigned>(most + 1));
            shape.window = static_cast<std::uint32_t>(random() % shape.tokens);
            auto const dtype = pick(std::array{Dtype::F32, Dtype::F16, Dtype::Bf16});
            auto const layout = pick(
                std::array{Layout::HeadMajor, Layout::TokenMajor, Layout::DimMajor, Layout::Odd});
            auto const reduce = pick(std::array{GroupReduce::Mean, GroupReduce::Max,
                                                GroupReduce::Sum, GroupReduce::None});
            Call call(shape, dtype, reduce, layout);
            call.fill(random);
            if (round % 3 == 0)
                call.args.scale = 0.3f / std::sqrt(static_cast<float>(shape.head_dim));
            if (round % 4 == 0) call.args.softcap = 2;
            call.args.per_query = round % 2 == 0;
            INFO(round, ": ", shape.kv_heads, " kv heads, group ", shape.group, ", tokens ",
                 shape.tokens, ", window ", shape.window, ", dim ", shape.head_dim, ", ",
                 name_of(dtype), ", layout ", static_cast<int>(layout), ", reduce ",
                 name_of(reduce));

            auto const want = test::reference_accumulate(call.queries, call.keys, call.args);
            REQUIRE(backend.accumulate(call.args));
            CHECK(test::worst_error(call.scores, want, test::tolerance(dtype)) <= 1);
        }
    });
}

TEST_CASE("accumulate meets the reference over several stretches of keys and blocks of queries") {
    test::for_each_backend([](Backend& backend) {
        bool const emulated = backend.name().find("emulated") != std::string_view::npos;
        std::mt19937 random(2);
        for (GroupReduce const reduce : {GroupReduce::Mean, GroupReduce::Max, GroupReduce::None}) {
            Call call({1, 3, emulated ? 1450u : 2101u, 5, 8}, Dtype::F32, reduce);
            call.fill(random);
            call.args.per_query = reduce != GroupReduce::None;
            auto const want = test::reference_accumulate(call.queries, call.keys, call.args);
            REQUIRE(backend.accumulate(call.args));
            CHECK(test::worst_error(call.scores, want, test::tolerance(Dtype::F32)) <= 1);
        }
    });
}

TEST_CASE("accumulate adds up blocks of queries, of as many heads as there are") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(13);
        for (GroupReduce const reduce : {GroupReduce::Mean, GroupReduce::None}) {
            Call call({1, 64, 90, 4, 8}, Dtype::F16, reduce);
            call.fill(random);
            auto const want = test::reference_accumulate(call.queries, call.keys, call.args);
            REQUIRE(backend.accumulate(call.args));
            CHECK(test::worst_error(call.scores, want, test::tolerance(Dtype::F16)) <= 1);
        }
    });
}

TEST_CASE("accumulate is the reference at a hundred small shapes, wherever their memory begins") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    test::for_each_backend([&](Backend& backend) {
        bool const emulated = backend.name().find("emulated") != std::string_view::npos;
        std::mt19937 random(seed);
        auto const below = [&](std::uint32_t end) {
            return static_cast<std::uint32_t>(random() % end);
        };
        auto const pick = [&](auto const& list) { return list[random() % list.size()]; };
        for (int round = 0; round < (emulated ? 60 : 100); ++round) {
            Shape shape{};
            shape.kv_heads = 1 + below(3);
            shape.group = 1 + below(16);
            shape.tokens = 1 + below(60);
            shape.window = below(shape.tokens + 1);
            shape.head_dim = pick(std::array{1u, 8u, 17u, 40u, 64u, 80u, 96u, 128u});
            auto const dtype = pick(std::array{Dtype::F32, Dtype::F16, Dtype::Bf16});
            auto const reduce = pick(std::array{GroupReduce::Mean, GroupReduce::Max,
                                                GroupReduce::Sum, GroupReduce::None});
            Call call(shape, dtype, reduce);
            call.keys.begin_at(pick(std::array{0u, 0u, 2u, 4u, 8u}));
            call.queries.begin_at(pick(std::array{0u, 2u, 4u, 8u}));
            call.args.queries = call.queries.view;
            call.args.keys = call.keys.view;
            call.fill(random);
            call.args.per_query = round % 2 == 0;
            INFO(round, ": ", shape.kv_heads, " kv heads, group ", shape.group, ", tokens ",
                 shape.tokens, ", window ", shape.window, ", dim ", shape.head_dim, ", ",
                 name_of(dtype), ", reduce ", name_of(reduce));

            auto const want = test::reference_accumulate(call.queries, call.keys, call.args);
            REQUIRE(backend.accumulate(call.args));
            CHECK(test::worst_error(call.scores, want, test::tolerance(dtype)) <= 1);
        }
    });
}

TEST_CASE("what all queries give adds up to their number") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(7);
        Call call({2, 3, 1300, 0, 16}, Dtype::F32, GroupReduce::None);
        call.fill(random);
        REQUIRE(backend.accumulate(call.args));
        for (std::ptrdiff_t head = 0; head < 6; ++head) {
            auto const begin = call.scores.begin() + head * 1300;
            CHECK(std::accumulate(begin, begin + 1300, 0.0) == doctest::Approx(1300).epsilon(1e-5));
        }
    });
}

TEST_CASE("accumulated scores are the same bits on any number of threads") {
    std::mt19937 random(3);
    for (Dtype const dtype : {Dtype::F32, Dtype::Bf16}) {
        Call call({3, 3, 1100, 32, 64}, dtype, GroupReduce::Mean);
        call.fill(random);
        std::vector<std::vector<float>> all;
        for (unsigned const threads : {1u, 2u, 0u}) {
            REQUIRE(make_cpu_backend(threads)->accumulate(call.args));
            all.push_back(call.scores);
        }
        CHECK(all[1] == all[0]);
        CHECK(all[2] == all[0]);
    }
}

TEST_CASE("NaN, infinite and large inputs give finite accumulated scores") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(5);
        for (float const poison : {std::nanf(""), kInfinity, -kInfinity, 1e4f}) {
            for (bool const all : {false, true}) {
                Call call({2, 3, 90, 8, 64}, Dtype::F16, GroupReduce::Mean);
                call.fill(random);
                if (all)
                    call.keys.fill([&](auto...) { return poison; });
                else
                    call.keys.set(1, 77, 3, poison);
                REQUIRE(backend.accumulate(call.args));
                CHECK(std::ranges::all_of(call.scores, [](float score) {
                    return std::isfinite(score) && score >= 0 && score <= 91;
                }));
            }
        }
    });
}

TEST_CASE("accumulate of a prompt that is all window is nothing") {
    test::for_each_backend([](Backend& backend) {
        Call call({2, 2, 8, 8, 16}, Dtype::F32, GroupReduce::Mean);
        REQUIRE(backend.accumulate(call.args));
    });
}

TEST_CASE("accumulate refuses what disagrees") {
    Call const good({2, 3, 10, 4, 8}, Dtype::F16, GroupReduce::Mean);
    CHECK(good.refusal().empty());
    auto const refusal = [&](auto change) {
        Call call({2, 3, 10, 4, 8}, Dtype::F16, GroupReduce::Mean);
        change(call.args);
        return call.refusal();
    };
    CHECK(refusal([](auto& args) { args.queries.heads = 7; }) ==
          "q_heads is 7, no multiple of kv_heads 2");
    CHECK(refusal([](auto& args) { args.queries.tokens = 9; }) ==
          "queries is [6, 9, 8], not [6, 10, 8]");
    CHECK(refusal([](auto& args) { args.queries.head_dim = args.keys.head_dim = 0; }) ==
          "head_dim is 0");
    CHECK(refusal([](auto& args) { args.queries.tokens = args.keys.tokens = 0; }) == "tokens is 0");
    CHECK(refusal([](auto& args) { args.window = 11; }) ==
          "window is 11, more than the 10 tokens of keys");
    CHECK(refusal([](auto& args) { args.queries.dtype = Dtype::Bf16; }) ==
          "queries are bf16, keys f16");
    CHECK(refusal([](auto& args) { args.scores = args.scores.first(11); }) ==
          "scores has 11 elements, not [2, 6]");
    CHECK(refusal([](auto& args) { args.reduce = GroupReduce::None; }) ==
          "scores has 12 elements, not [6, 6]");
    CHECK(refusal([](auto& args) { args.scale = kInfinity; }) == "scale is inf");
    CHECK(refusal([](auto& args) { args.softcap = -1; }) == "softcap is -1.000000");
    CHECK(refusal([](auto& args) { args.keys.data = nullptr; }) == "keys has no data");

    Call call({1, 1, 2, 1, 1}, Dtype::F32, GroupReduce::Mean);
    call.args.keys.place = Place::Device;
    auto const device = make_cpu_backend(1)->accumulate(call.args);
    REQUIRE_FALSE(device);
    CHECK(device.error().message == "queries or keys are in device memory");
}
