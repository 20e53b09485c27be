// Paged rows, through a block table, are the dense rows that they stand for: the same bits.
#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "tests/support/backends.h"
#include "tests/support/rows.h"

using namespace dkv;
using test::Layout;
using test::Rows;

namespace {

constexpr std::uint32_t kSpareBlocks = 3;  // Blocks that belong to somebody else.

/// The rows of `dense` in blocks of shuffled places, what is not theirs filled with 0xff: NaN.
struct Paged {
    Paged(Rows const& dense, std::uint32_t block_tokens, bool token_major, std::mt19937& random)
        : view(dense.view) {
        std::uint32_t const used = (view.tokens + block_tokens - 1) / block_tokens;
        std::vector<std::int32_t> places(used + kSpareBlocks);
        std::iota(places.begin(), places.end(), 0);
        std::shuffle(places.begin(), places.end(), random);
        table.assign(places.begin(), places.begin() + used);

        view.block_tokens = block_tokens;
        view.block_count = used + kSpareBlocks;
        view.dim_stride = 1;
        view.token_stride = token_major ? std::uint64_t{view.heads} * view.head_dim : view.head_dim;
        view.head_stride =
            token_major ? view.head_dim : std::uint64_t{block_tokens} * view.head_dim;
        view.block_stride = std::uint64_t{block_tokens} * view.heads * view.head_dim;
        view.blocks = table.data();
        bytes.assign(extent_bytes(view).value(), std::byte{0xff});
        view.data = bytes.data();
        for (std::uint32_t head = 0; head < view.heads; ++head)
            for (std::uint32_t token = 0; token < view.tokens; ++token)
                for (std::uint32_t dim = 0; dim < view.head_dim; ++dim)
                    test::store(view.row(head, token) + dim * bytes_of(view.dtype), view.dtype,
                                dense.get(head, token, dim));
    }

    std::vector<std::int32_t> table;
    std::vector<std::byte> bytes;
    RowsView view;
};

/// Calls body(backend, dense, paged) for partial last blocks, whole ones, and one block for all.
template <class Body>
void for_each_paged(Body body) {
    test::for_each_backend([&](Backend& backend) {
        std::mt19937 random(7);
        for (Dtype const dtype : {Dtype::F32, Dtype::F16, Dtype::Bf16}) {
            for (std::uint32_t const tokens : {1U, 16U, 61U, 200U}) {
                for (std::uint32_t const block_tokens : {1U, 16U, 24U, 256U}) {
                    for (std::uint32_t const dim : {5U, 64U}) {
                        INFO(name_of(dtype), ", ", tokens, " tokens in blocks of ", block_tokens,
                             ", dim ", dim);
                        Rows dense(dtype, 3, tokens, dim);
                        dense.fill_normal(random);
                        Paged const paged(dense, block_tokens, random() % 2 == 0, random);
                        body(backend, dense.view, paged.view);
                    }
                }
            }
        }
    });
}

/// A cache of two blocks of four tokens, of whose table entry 1 says `second`.
struct TwoBlocks {
    explicit TwoBlocks(std::int32_t second) : table{1, second} {
        view.blocks = table.data();
        view.block_tokens = 4;
        view.block_count = 2;
        view.block_stride = 8;
        view.tokens = 7;
    }
    std::array<std::int32_t, 2> table;
    std::array<float, 16> memory{};
    RowsView view = dense_rows(reinterpret_cast<std::byte*>(memory.data()), Dtype::F32, 1, 4, 2);
};

}  // namespace

TEST_CASE("gather from a paged cache is gather from the dense one") {
    for_each_paged([](Backend& backend, RowsView const& dense, RowsView const& paged) {
        std::mt19937 random(dense.tokens);
        std::array<std::uint32_t, 3> const lengths{dense.tokens, 0, 3};
        std::vector<std::int32_t> ids(lengths[0] + lengths[2]);
        for (auto& id : ids)
            id = static_cast<std::int32_t>(random() % dense.tokens);
        std::array<std::uint64_t, 3> const offsets{0, 0, lengths[0] * dense.row_bytes()};
        std::vector<std::byte> want(ids.size() * dense.row_bytes());
        auto got = want;

        REQUIRE(backend.gather({dense, ids, lengths, want, offsets}));
        REQUIRE(backend.gather({paged, ids, lengths, got, offsets}));

        CHECK(got == want);
    });
}

TEST_CASE("keys of a paged cache score what those of the dense one score") {
    for_each_paged([](Backend& backend, RowsView const& dense, RowsView const& paged) {
        for (KeyMeasure const measure : {KeyMeasure::Norm, KeyMeasure::Difference}) {
            std::vector<float> want(std::size_t{3} * dense.tokens);
            auto got = want;

            REQUIRE(backend.key_score({dense, want, 0, measure}));
            REQUIRE(backend.key_score({paged, got, 0, measure}));

            CHECK(got == want);
        }
    });
}

TEST_CASE("a prompt whose keys are paged scores what the dense one scores") {
    test::for_each_backend([](Backend& backend) {
        std::mt19937 random(11);
        for (std::uint32_t const tokens : {333U, 64U}) {
            CAPTURE(tokens);
            constexpr std::uint32_t kWindow = 32;
            Rows keys(Dtype::F16, 2, tokens, 64);
            Rows queries(Dtype::F16, 4, tokens, 64);
            keys.fill_normal(random);
            queries.fill_normal(random);
            Paged const paged(keys, 16, true, random);
            RowsView window = queries.view;
            window.data = window.row(0, tokens - kWindow);
            window.tokens = kWindow;
            std::vector<float> want(std::size_t{2} * (tokens - kWindow));
            auto got = want;

            REQUIRE(
                backend.score({.queries = window, .keys = keys.view, .scores = want, .mass = {}}));
            REQUIRE(
                backend.score({.queries = window, .keys = paged.view, .scores = got, .mass = {}}));
            CHECK(got == want);

            REQUIRE(backend.accumulate(
                {.queries = queries.view, .keys = keys.view, .scores = want, .window = kWindow}));
            REQUIRE(backend.accumulate(
                {.queries = queries.view, .keys = paged.view, .scores = got, .window = kWindow}));
            CHECK(got == want);
        }
    });
}

TEST_CASE("a block that does not exist is refused, and nothing is read or written") {
    test::for_each_backend([](Backend& backend) {
        for (std::int32_t const bad : {2, -1, std::numeric_limits<std::int32_t>::max()}) {
            CAPTURE(bad);
            TwoBlocks const cache(bad);
            std::string const want =
                "block 1 of the table is " + std::to_string(bad) + ", not in [0, 2)";
            // None of the rows that are asked for is in the block.
            std::array<std::int32_t, 2> const ids{0, 3};
            std::uint32_t const length = 2;
            std::uint64_t const offset = 0;
            std::vector<std::byte> out(16, std::byte{0xee});
            auto const gathered =
                backend.gather({cache.view, ids, {&length, 1}, out, {&offset, 1}});
            REQUIRE_FALSE(gathered);
            CHECK(gathered.error().code == ErrorCode::InvalidArgument);
            CHECK(gathered.error().message == want);
            CHECK(out == std::vector<std::byte>(16, std::byte{0xee}));

            for (KeyMeasure const measure : {KeyMeasure::Norm, KeyMeasure::Difference}) {
                std::vector<float> scores(7, 5.F);
                auto const scored = backend.key_score({cache.view, scores, 0, measure});
                REQUIRE_FALSE(scored);
                CHECK(scored.error().message == want);
                CHECK(scores == std::vector<float>(7, 5.F));
            }
            Rows queries(Dtype::F32, 2, 7, 2);
            std::vector<float> scores(7, 5.F);
            auto const accumulated =
                backend.accumulate({.queries = queries.view, .keys = cache.view, .scores = scores});
            REQUIRE_FALSE(accumulated);
            CHECK(accumulated.error().message == want);
            RowsView window = queries.view;
            window.tokens = 2;
            auto const scored = backend.score({.queries = window,
                                               .keys = cache.view,
                                               .scores = std::span(scores).first(5),
                                               .mass = {}});
            REQUIRE_FALSE(scored);
            CHECK(scored.error().message == want);
            CHECK(scores == std::vector<float>(7, 5.F));
        }
        TwoBlocks const good(0);  // The error is not that of the next call, too.
        std::vector<float> scores(7);
        CHECK(backend.key_score({good.view, scores, 0, KeyMeasure::Norm}));
    });
}

TEST_CASE("paged rows are as long as their blocks, and are refused where they make no sense") {
    TwoBlocks cache(0);
    CHECK(cache.view.table_size() == 2);
    CHECK(extent_bytes(cache.view).value() == 64);
    CHECK(cache.view.row(0, 5) == cache.view.data + 8);
    CHECK(cache.view.row(0, 2) == cache.view.data + 32 + 16);
    CHECK(check_blocks(cache.view));

    RowsView view = cache.view;
    view.block_tokens = 0;
    CHECK(check_memory("keys", view).error().message == "keys has blocks of 0 tokens");
    view = cache.view;
    view.block_stride = std::numeric_limits<std::uint64_t>::max() / 2;
    CHECK(check_memory("keys", view).error().message ==
          "keys: strides [8, 2, 1] of shape [1, 7, 2] in 2 blocks 9223372036854775807 apart reach "
          "beyond 64 bits");
    CHECK(check_heads(cache.view, cache.view).error().message ==
          "queries are paged; only keys and values may be");

    std::array<std::int32_t, 1> const ids{0};
    std::uint32_t const length = 1;
    std::uint64_t const offset = 8;
    auto const over =
        check(GatherArgs{cache.view, ids, {&length, 1}, {cache.view.data, 64}, {&offset, 1}});
    REQUIRE_FALSE(over);
    CHECK(over.error().message ==
          "out overlaps the blocks of source: rows of head 0 would be written between them");
}
