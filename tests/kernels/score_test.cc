#include "kernels/ops/score.h"

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
using Call = test::ScoreCall;
using Shape = test::ScoreShape;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void check_against_reference(Backend& backend, Call& call) {
    auto const want =
        test::reference_score(call.queries, call.keys, call.args.reduce, call.args.scale,
                              call.args.softcap, call.args.sink_logits);
    double const relative = test::tolerance(call.keys.view.dtype);
    REQUIRE(backend.score(call.args));
    CHECK(test::worst_error(call.scores, want.scores, relative) <= 1);
    CHECK(test::worst_error(call.mass, want.mass, relative) <= 1);
    CHECK(test::worst_error(call.peaks, want.peaks, relative) <= 1);

    ScoreArgs no_mass = call.args;
    no_mass.mass = {};
    no_mass.peaks = {};
    auto const with_mass = call.scores;
    REQUIRE(backend.score(no_mass));
    CHECK(call.scores == with_mass);
}

bool emulated(Backend const& backend) {
    return backend.name().find("emulated") != std::string_view::npos;
}

}  // namespace

TEST_CASE("score is the softmax over all tokens, causal inside the window, averaged over it") {
    test::for_each_backend([](Backend& backend) {
        // One head, one dimension: q·k = k for both queries, and e^k = 1, 2, 3, 4.
        Call call({1, 1, 2, 4, 1}, Dtype::F32, GroupReduce::Mean);
        call.queries.fill([](auto...) { return 1.f; });
        call.keys.fill(
            [](auto, auto token, auto) { return std::log(static_cast<float>(token + 1)); });

        REQUIRE(backend.score(call.args));

        // The first query sees 1 + 2 + 3 = 6, the second 10.
        CHECK(call.scores[0] == doctest::Approx((1.0 / 6 + 1.0 / 10) / 2));
        CHECK(call.scores[1] == doctest::Approx((2.0 / 6 + 2.0 / 10) / 2));
        CHECK(call.mass == call.scores);
        CHECK(call.peaks[0] == doctest::Approx(1.0 / 6));
        CHECK(call.peaks[1] == doctest::Approx(2.0 / 6));
    });
}

TEST_CASE("score reduces the query heads of a group as asked") {
    test::for_each_backend([](Backend& backend) {
        // Query head 0 is indifferent; query head 1 sees e^k = 1, 3, and itself 4.
        auto const scores = [&](GroupReduce reduce) {
            Call call({1, 2, 1, 3, 1}, Dtype::F32, reduce);
            call.queries.fill([](auto head, auto, auto) { return static_cast<float>(head); });
            call.keys.fill([](auto, auto token, auto) {
                return std::log(std::array{1.f, 3.f, 4.f}[token]);
            });
            REQUIRE(backend.score(call.args));
            CHECK(call.mass[0] == doctest::Approx((1.0 / 3 + 1.0 / 8) / 2));
            CHECK(call.mass[1] == doctest::Approx((1.0 / 3 + 3.0 / 8) / 2));
            return call.scores;
        };
        auto const near = [](std::vector<float> const& got, std::vector<double> const& want) {
            CHECK(test::worst_error(got, want, 1e-6) <= 1);
        };
        near(scores(GroupReduce::None), {1.0 / 3, 1.0 / 3, 1.0 / 8, 3.0 / 8});
        near(scores(GroupReduce::Mean), {(1.0 / 3 + 1.0 / 8) / 2, (1.0 / 3 + 3.0 / 8) / 2});
        near(scores(GroupReduce::Sum), {1.0 / 3 + 1.0 / 8, 1.0 / 3 + 3.0 / 8});
        near(scores(GroupReduce::Max), {1.0 / 3, 3.0 / 8});
    });
}

TEST_CASE("score is the reference at every shape, dtype, layout and reduction") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto const pick = [&](auto const& list) { return list[random() % list.size()]; };
    test::for_each_backend([&](Backend& backend) {
        for (int round = 0; round < 60; ++round) {
            Shape shape{};
            shape.kv_heads = 1 + static_cast<std::uint32_t>(random() % 3);
            shape.group = pick(std::array{1u, 3u, 4u, 7u, 8u});
            shape.head_dim = pick(std::array{1u, 33u, 64u, 80u, 96u, 128u, 256u});
            shape.window = pick(std::array{1u, 2u, 8u, 15u, 17u, 32u, 64u, 128u});
            if (emulated(backend) && shape.group * shape.window > 256) shape.kv_heads = 1;
            auto const most = (emulated(backend) ? 300'000U : 700'000U) /
                              (shape.kv_heads * shape.group * shape.head_dim * shape.window);
            shape.tokens = shape.window + static_cast<std::uint32_t>(random() % (most % 600 + 2));
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
            if (round % 5 < 2) call.add_sinks({-5, 0, 1.5F, 3, 30});
            INFO(round, ": ", shape.kv_heads, " kv heads, group ", shape.group, ", window ",
                 shape.window, ", tokens ", shape.tokens, ", dim ", shape.head_dim, ", ",
                 name_of(dtype), ", layout ", static_cast<int>(layout), ", reduce ",
                 name_of(reduce));

            check_against_reference(backend, call);
        }
    });
}

TEST_CASE("score is the reference at hundreds of small shapes, wherever their memory begins") {
    unsigned const seed = std::random_device{}();
    CAPTURE(seed);
    test::for_each_backend([&](Backend& backend) {
        std::mt19937 random(seed);
        auto const below = [&](std::uint32_t end) {
            return static_cast<std::uint32_t>(random() % end);
        };
        auto const pick = [&](auto const& list) { return list[random() % list.size()]; };
        for (int round = 0; round < (emulated(backend) ? 150 : 250); ++round) {
            Shape shape{};
            shape.kv_heads = 1 + below(3);
            shape.group = 1 + below(16);
            shape.window = 1 + below(64 / shape.group + 1);
            shape.tokens = shape.window + below(100);
            shape.head_dim = round % 2 == 0
                                 ? 1 + below(40)
                                 : pick(std::array{64u, 72u, 80u, 88u, 96u, 104u, 128u, 136u});
            auto const dtype = pick(std::array{Dtype::F32, Dtype::F16, Dtype::Bf16});
            auto const reduce = pick(std::array{GroupReduce::Mean, GroupReduce::Max,
                                                GroupReduce::Sum, GroupReduce::None});
            auto const layout = pick(std::array{Layout::HeadMajor, Layout::TokenMajor});
            Call call(shape, dtype, reduce, layout);
            std::size_t const skew = pick(std::array{0u, 0u, 2u, 4u, 8u});
            call.keys.begin_at(skew);
            call.queries.begin_at(pick(std::array{0u, 2u, 4u, 8u}));
            call.args.queries = call.queries.view;
            call.args.keys = call.keys.view;
            call.fill(random);
            call.args.softcap = round % 5 == 0 ? 3.0f : 0.0f;
            INFO(round, ": ", shape.kv_heads, " kv heads, group ", shape.group, ", window ",
                 shape.window, ", tokens ", shape.tokens, ", dim ", shape.head_dim, ", ",
                 name_of(dtype), ", layout ", static_cast<int>(layout), ", reduce ",
                 name_of(reduce), ", keys begin at ", skew);

            check_against_reference(backend, call);
        }
    });
}

TEST_CASE("score takes every head_dim, window and group") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(23);
        auto const check = [&](Shape const& shape, Dtype dtype) {
            INFO("group ", shape.group, ", window ", shape.window, ", dim ", shape.head_dim, ", ",
                 name_of(dtype));
            Call call(shape, dtype, GroupReduce::Mean);
            call.fill(random);
            check_against_reference(backend, call);
        };
        for (std::uint32_t const dim :
             {1u, 15u, 16u, 17u, 63u, 65u, 79u, 81u, 97u, 127u, 129u, 255u, 256u, 257u, 320u, 640u})
            for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16})
                check({1, 2, 3, 70, dim}, dtype);
        for (std::uint32_t const window : {1u, 7u, 9u, 31u, 33u, 127u, 129u, 300u})
            check({1, 2, window, window + 67, 16}, Dtype::Bf16);
        // Rows that take turns in a block, and those of several blocks.
        for (Dtype const dtype : {Dtype::F32, Dtype::F16}) {
            check({1, 16, 128, 270, 8}, dtype);
            check({2, 16, 130, 200, 8}, dtype);
        }
    });
}

TEST_CASE("a device refuses a head_dim that its kernels do not take") {
    test::for_each_backend([](Backend& backend) {
        Call call({1, 1, 1, 3, 641}, Dtype::Bf16, GroupReduce::Mean);
        auto const result = backend.score(call.args);
        if (backend.name().starts_with("cpu")) {
            CHECK(result);
            return;
        }
        REQUIRE_FALSE(result);
        CHECK(result.error().code == ErrorCode::Unsupported);
        CHECK(result.error().message ==
              "head_dim is 641, more than the 640 that a GPU's kernels take");
    });
}

TEST_CASE("score of paged keys is score of the same keys side by side, to the bit") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(29);
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            for (std::uint32_t const block_tokens : {1u, 16u, 24u, 256u}) {
                constexpr std::uint32_t kTokens = 200;
                Call call({2, 3, 7, kTokens, 64}, dtype, GroupReduce::Mean);
                call.fill(random);
                if (block_tokens != 16) call.add_sinks({0, 3});
                REQUIRE(backend.score(call.args));
                auto const want = call.scores;

                std::uint32_t const blocks = (kTokens + block_tokens - 1) / block_tokens;
                Rows pages(dtype, 2, blocks * block_tokens, 64);
                pages.fill([](auto...) { return std::nanf(""); });
                std::vector<std::int32_t> table;
                for (std::uint32_t block = 0; block < blocks; ++block)
                    table.push_back(static_cast<std::int32_t>(blocks - 1 - block));
                for (std::uint32_t head = 0; head < 2; ++head)
                    for (std::uint32_t token = 0; token < kTokens; ++token)
                        for (std::uint32_t dim = 0; dim < 64; ++dim)
                            pages.set(head,
                                      (blocks - 1 - token / block_tokens) * block_tokens +
                                          token % block_tokens,
                                      dim, call.keys.get(head, token, dim));
                RowsView paged = pages.view;
                paged.tokens = kTokens;
                paged.blocks = table.data();
                paged.block_tokens = block_tokens;
                paged.block_count = blocks;
                paged.block_stride = block_tokens * paged.token_stride;
                ScoreArgs args = call.args;
                args.keys = paged;
                REQUIRE(backend.score(args));
                CHECK(call.scores == want);

                table[blocks / 2] = static_cast<std::int32_t>(blocks);
                auto const refused = backend.score(args);
                REQUIRE_FALSE(refused);
                CHECK(refused.error().message.find("of the table is " + std::to_string(blocks)) !=
                      std::string::npos);
            }
        }
    });
}

TEST_CASE("score of a prompt that is too long to keep between the passes is the same") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(17);
        // 34 MiB of logits; an emulated device keeps none, and many tokens are enough.
        Shape const shape = emulated(backend) ? Shape{1, 2, 5, 8800, 2} : Shape{1, 8, 128, 8800, 2};
        for (Dtype const dtype : {Dtype::F32, Dtype::Bf16}) {
            Call call(shape, dtype, GroupReduce::Mean);
            call.fill(random);
            check_against_reference(backend, call);
        }
    });
}

TEST_CASE("score does not depend on what was scored before") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(19);
        Call call({2, 3, 5, 700, 64}, Dtype::Bf16, GroupReduce::Mean);
        call.fill(random);
        REQUIRE(backend.score(call.args));
        auto const first = call.scores;

        Call nan({3, 4, 32, 900, 80}, Dtype::F32, GroupReduce::Max);
        nan.keys.fill([](auto...) { return std::nanf(""); });
        nan.queries.fill([](auto...) { return kInfinity; });
        REQUIRE(backend.score(nan.args));

        REQUIRE(backend.score(call.args));
        CHECK(call.scores == first);
    });
}

TEST_CASE("the prefix's and the window's mass add up to 1") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(7);
        Call call({2, 3, 5, 700, 64}, Dtype::F32, GroupReduce::Max);
        call.fill(random);
        REQUIRE(backend.score(call.args));
        auto const want = test::reference_score(call.queries, call.keys, GroupReduce::Max);
        for (std::uint32_t head = 0; head < 2; ++head) {
            auto const begin = call.mass.begin() + (head == 0 ? 0 : 695);
            double const prefix = std::accumulate(begin, begin + 695, 0.0);
            CHECK(prefix + want.window_share[head] == doctest::Approx(1).epsilon(1e-5));
        }
    });
}

TEST_CASE("scores are the same bits on any number of threads") {
    std::mt19937 random(3);
    for (Dtype const dtype : {Dtype::F32, Dtype::Bf16}) {
        Call call({3, 3, 32, 2000, 64}, dtype, GroupReduce::Mean);
        call.fill(random);
        std::vector<std::vector<float>> all;
        for (unsigned const threads : {1u, 2u, 3u, 0u, 2u}) {
            REQUIRE(make_cpu_backend(threads)->score(call.args));
            all.push_back(call.scores);
            all.push_back(call.mass);
        }
        for (std::size_t i = 2; i < all.size(); ++i)
            CHECK(all[i] == all[i % 2]);
    }
}

TEST_CASE("score of a prompt that is all window is nothing") {
    test::for_each_backend([](Backend& backend) {
        Call call({2, 2, 8, 8, 16}, Dtype::F32, GroupReduce::Mean);
        REQUIRE(backend.score(call.args));
    });
}

TEST_CASE("score refuses shapes that disagree") {
    Call const good({2, 3, 4, 10, 8}, Dtype::F16, GroupReduce::Mean);
    CHECK(good.refusal().empty());
    auto const refusal = [&](auto change) {
        Call call({2, 3, 4, 10, 8}, Dtype::F16, GroupReduce::Mean);
        change(call.args);
        return call.refusal();
    };
    CHECK(refusal([](auto& args) { args.queries.heads = 7; }) ==
          "q_heads is 7, no multiple of kv_heads 2");
    CHECK(refusal([](auto& args) { args.keys.heads = 0; }) ==
          "q_heads is 6, no multiple of kv_heads 0");
    CHECK(refusal([](auto& args) { args.queries.head_dim = 9; }) ==
          "queries is [6, 4, 9], not [6, 4, 8]");
    CHECK(refusal([](auto& args) { args.queries.tokens = 0; }) == "window is 0");
    CHECK(refusal([](auto& args) { args.queries.tokens = 11; }) ==
          "window is 11, more than the 10 tokens of keys");
    CHECK(refusal([](auto& args) { args.queries.head_dim = args.keys.head_dim = 0; }) ==
          "head_dim is 0");
    CHECK(refusal([](auto& args) { args.queries.dtype = Dtype::Bf16; }) ==
          "queries are bf16, keys f16");
    CHECK(refusal([](auto& args) {
              args.queries.heads = 0xfffffffe;
              args.queries.tokens = 10;
              args.queries.head_stride = args.queries.token_stride = 0;
          }) == "queries have more than 68719476736 elements");
    CHECK(refusal([](auto& args) { args.scores = args.scores.first(11); }) ==
          "scores has 11 elements, not [2, 6]");
    CHECK(refusal([](auto& args) { args.reduce = GroupReduce::None; }) ==
          "scores has 12 elements, not [6, 6]");
    CHECK(refusal([](auto& args) { args.mass = args.mass.first(11); }) ==
          "mass has 11 elements, not [2, 6]");
    CHECK(refusal([](auto& args) { args.peaks = args.peaks.first(11); }) ==
          "peaks has 11 elements, not [2, 6]");
}

TEST_CASE("score refuses numbers and memory that cannot be") {
    auto const refusal = [&](auto change) {
        Call call({2, 3, 4, 10, 8}, Dtype::F16, GroupReduce::Mean);
        change(call.args);
        return call.refusal();
    };
    CHECK(refusal([](auto& args) { args.scale = kInfinity; }) == "scale is inf");
    CHECK(refusal([](auto& args) { args.softcap = -1; }) == "softcap is -1.000000");
    CHECK(refusal([](auto& args) { args.keys.data = nullptr; }) == "keys has no data");
    CHECK(refusal([](auto& args) { args.keys.token_stride = ~0ull; }) ==
          "keys: strides [80, 18446744073709551615, 1] of shape [2, 10, 8] reach beyond 64 bits");

    Call call({1, 1, 1, 2, 1}, Dtype::F32, GroupReduce::Mean);
    call.args.keys.place = Place::Device;
    auto const device = make_cpu_backend(1)->score(call.args);
    REQUIRE_FALSE(device);
    CHECK(device.error().message == "queries or keys are in device memory");
}
