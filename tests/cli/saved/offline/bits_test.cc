// dkv compact --bits: more rows, of fewer bits, in the same bytes.
#include "cli/saved/offline/convert.h"
#include "tests/cli/saved/offline/compact_fixture.h"

using namespace dkv;
using test::CompactFixture;

namespace {

struct BitsFixture : CompactFixture {
    BitsFixture() {
        geometry.head_dim = 32;
        tokens = 200;
    }

    offline::CompactRequest cut(RowBits bits, PolicyRequest const& policy) {
        auto wish = request(policy, make(4));
        wish.bits = bits;
        wish.force = true;
        return wish;
    }

    /// Positions of a head whose keys in `made` are within a fortieth of those in `from`.
    std::vector<std::int32_t> near_rows(SavedCache const& from,
                                        SavedCache const& made,
                                        std::uint32_t layer,
                                        std::uint32_t head) const {
        auto const a = from.layer(layer).value();
        auto const b = made.layer(layer).value();
        auto const keys = b.keys_of(head);
        auto const positions = b.positions_of(head);
        std::vector<std::int32_t> near;
        for (std::uint32_t row = 0; row < keys.tokens; ++row) {
            auto const at = positions.empty() ? static_cast<std::int32_t>(row) : positions[row];
            double off = 0;
            double size = 0;
            for (std::uint32_t dim = 0; dim < geometry.head_dim; ++dim) {
                auto const number = [&](RowsView const& view, std::uint32_t one, std::uint32_t t) {
                    return double{reinterpret_cast<float const*>(view.row(one, t))[dim]};
                };
                double const wanted = number(a.keys, head, static_cast<std::uint32_t>(at));
                off += std::pow(number(keys, 0, row) - wanted, 2);
                size += wanted * wanted;
            }
            if (off < size / 1600) near.push_back(at);
        }
        return near;
    }
};

}  // namespace

TEST_CASE_FIXTURE(BitsFixture, "a capacity is the bytes of so many tokens of the input") {
    PolicyRequest const policy{.name = "snapkv", .capacity = 20, .window = 4};
    auto const plain = compact(cut(RowBits::Own, policy));
    std::uint64_t const bytes = plain.rows_bytes_after;
    CHECK(bytes == 20U * 10 * 2 * 32 * 4);

    auto const eight = compact(cut(RowBits::Eight, policy));  // f32: 128 bytes become 34 and 18.
    CHECK(eight.lengths == std::vector<std::uint32_t>(10, 75));
    CHECK(eight.rows_bytes_after == 75U * 10 * 68);
    CHECK(eight.params.capacity == 75);
    CHECK(eight.notes.back() == "with 8 bits 75 tokens per head have the bytes of 20 in the input");
    auto const four = compact(cut(RowBits::Four, policy));
    CHECK(four.lengths == std::vector<std::uint32_t>(10, 142));
    CHECK(four.rows_bytes_after <= bytes);
    CHECK(four.file_bytes_after == std::filesystem::file_size(folder / "out"));

    auto const made = open_cache(folder / "out").value();
    CHECK(made->facts().provenance.at("bits") == "4");
    CHECK(made->facts().provenance.at("capacity") == "142");
    CHECK(made->geometry().dtype == Dtype::F32);
    CHECK(compact(cut(RowBits::Four, {.name = "snapkv", .window = 4, .ratio = 0.1})).lengths ==
          four.lengths);
}

TEST_CASE_FIXTURE(BitsFixture, "positions are those that as many tokens would have as they are") {
    for (char const* policy : {"snapkv", "dynamickv", "keydiff"}) {
        CAPTURE(policy);
        auto const few = compact(cut(RowBits::Four, {.name = policy, .capacity = 20, .window = 4}));
        auto const quantised = open_cache(folder / "out").value();
        compact(cut(RowBits::Own, {.name = policy, .capacity = few.params.capacity, .window = 4}));
        auto const plain = open_cache(folder / "out").value();

        for (std::uint32_t layer = 0; layer < geometry.layers; ++layer) {
            auto const a = quantised->layer(layer).value();
            auto const b = plain->layer(layer).value();
            CHECK(a.positions == b.positions);
            CHECK(a.head_rows == b.head_rows);
        }
    }
}

TEST_CASE_FIXTURE(BitsFixture, "a prompt that fits keeps every token, in fewer bits") {
    auto const outcome =
        compact(cut(RowBits::Eight, {.name = "snapkv", .capacity = 100, .window = 4}));

    CHECK(outcome.kept_whole);
    CHECK(outcome.rows_bytes_after == 200U * 10 * 68);
    auto const made = open_cache(folder / "out").value();
    CHECK(made->facts().is_whole());
    CHECK(made->facts().stored->type == "q8_0, rotated by 32");
}

TEST_CASE_FIXTURE(BitsFixture, "mixed: the best rows of each head have 8 bits") {
    auto const outcome =
        compact(cut(RowBits::Mixed, {.name = "keydiff", .capacity = 20, .window = 4}));

    // 20 rows of 256 bytes are 123 of 36, and of 18 of them 36 more: of 123 in 200 a quarter.
    CHECK(outcome.lengths == std::vector<std::uint32_t>(10, 123));
    CHECK(outcome.rows_bytes_after == (123U + 18) * 10 * 36);
    CHECK(outcome.file_bytes_after == std::filesystem::file_size(folder / "out"));
    CHECK(outcome.notes.back() ==
          "with mixed bits 123 tokens per head have the bytes of 20 in the input");
    auto const mixed = open_cache(folder / "out").value();
    CHECK(mixed->facts().provenance.at("bits") == "mixed");
    CHECK(mixed->facts().rows_bytes() == outcome.rows_bytes_after);

    // The best 18 are those that the policy keeps where it keeps no more.
    auto const whole = open_cache(folder / "cache").value();
    compact(cut(RowBits::Own, {.name = "keydiff", .capacity = 18 + 4, .window = 4}));
    auto const best = open_cache(folder / "out").value();
    for (std::uint32_t layer = 0; layer < geometry.layers; ++layer)
        for (std::uint32_t head = 0; head < geometry.kv_heads; ++head) {
            auto const near = near_rows(*whole, *mixed, layer, head);
            auto const wanted = best->layer(layer).value();
            auto const positions = wanted.positions_of(head);
            CHECK(near == std::vector(positions.begin(), positions.end() - 4));
        }
}

TEST_CASE_FIXTURE(BitsFixture,
                  "mixed: where every token fits, what is left of the bytes refines more") {
    auto const outcome =
        compact(cut(RowBits::Mixed, {.name = "snapkv", .capacity = 50, .window = 4}));

    // 50 rows of 256 bytes are 200 of 36 and, of 77 in 100, 36 more.
    CHECK(outcome.kept_whole);
    CHECK(outcome.lengths == std::vector<std::uint32_t>(10, 200));
    CHECK(outcome.rows_bytes_after == (200U + 155) * 10 * 36);
    CHECK(outcome.notes.back() ==
          "with mixed bits every token fits; 78 % of each head's, the best, have 8");
    auto const whole = open_cache(folder / "cache").value();
    auto const made = open_cache(folder / "out").value();
    CHECK(made->facts().is_whole());
    CHECK(near_rows(*whole, *made, 2, 1).size() == 155);

    auto const all = compact(cut(RowBits::Mixed, {.name = "snapkv", .capacity = 150, .window = 4}));
    CHECK(all.rows_bytes_after == 400U * 10 * 36);
    auto const by_bytes =
        compact(cut(RowBits::Mixed, {.name = "snapkv", .window = 4, .bytes = 130'000}));
    CHECK(by_bytes.kept_whole);
    CHECK(by_bytes.file_bytes_after <= 130'000);
    CHECK(by_bytes.file_bytes_after > 129'000);

    tokens = 4;  // The window alone: nothing is ranked, and the newest are refined.
    make(4);
    auto const tiny = compact(cut(RowBits::Mixed, {.name = "snapkv", .capacity = 4, .window = 4}));
    CHECK(tiny.rows_bytes_after == 8U * 10 * 36);
    tokens = 1;
    auto wish = request({.name = "snapkv", .capacity = 40, .window = 40}, make(1));
    wish.bits = RowBits::Mixed;
    wish.force = true;
    auto const one = compact(wish);
    CHECK(one.rows_bytes_after == 2U * 10 * 36);
}

TEST_CASE_FIXTURE(BitsFixture, "mixed: bytes and keep_mass count what is refined") {
    auto const by_bytes =
        compact(cut(RowBits::Mixed, {.name = "snapkv", .window = 4, .bytes = 60'000}));
    CHECK(by_bytes.file_bytes_after <= 60'000);
    CHECK(by_bytes.file_bytes_after > 58'000);
    CHECK_FALSE(by_bytes.kept_whole);

    auto const mass =
        compact(cut(RowBits::Mixed, {.name = "snapkv", .window = 4, .keep_mass = 0.8}));
    CHECK(mass.lengths ==
          compact(cut(RowBits::Own, {.name = "snapkv", .window = 4, .keep_mass = 0.8})).lengths);
    CHECK(refusal(cut(RowBits::Mixed, {.name = "fullkv"})) ==
          "invalid_argument: cache: fullkv ranks no tokens, and mixed bits are more for the best: "
          "--bits 8 or 4");
    CHECK(refusal([&] {
              auto wish = cut(RowBits::Mixed, {.name = "snapkv", .capacity = 50, .window = 4});
              wish.input = make(0, 3, "bare");
              return wish;
          }()) ==
          "invalid_argument: bare: snapkv needs the queries of the last 4 tokens, and the file has "
          "none: `dkv capture MODEL FILE` works them out; reuse, knorm, keydiff and streamingllm "
          "need none");
}

TEST_CASE_FIXTURE(BitsFixture, "bytes and keep_mass mean what they mean without") {
    std::uint64_t const most = 60'000;
    auto const by_bytes =
        compact(cut(RowBits::Four, {.name = "snapkv", .window = 4, .bytes = most}));
    CHECK(by_bytes.file_bytes_after <= most);
    CHECK(by_bytes.file_bytes_after > most - 2000);

    auto const mass =
        compact(cut(RowBits::Four, {.name = "snapkv", .window = 4, .keep_mass = 0.8}));
    auto const plain =
        compact(cut(RowBits::Own, {.name = "snapkv", .window = 4, .keep_mass = 0.8}));
    CHECK(mass.lengths == plain.lengths);
    CHECK(mass.mass_kept == plain.mass_kept);
}

TEST_CASE_FIXTURE(BitsFixture,
                  "a whole file of fewer bits is compacted and converted as its rows") {
    compact(cut(RowBits::Eight, {.name = "fullkv"}));
    std::filesystem::rename(folder / "out", folder / "eight");
    auto wish = request({.name = "keydiff", .capacity = 20, .window = 4}, folder / "eight");

    auto const again = compact(wish);

    CHECK(again.rows_bytes_before == 200U * 10 * 68);
    CHECK(again.rows_bytes_after == 20U * 10 * 256);
    CHECK(again.notes.back() ==
          "rows were q8_0, rotated by 32: they are f32 now, dequantised, of 256 bytes a token and "
          "head instead of 68");
    rows_of(*open_cache(folder / "eight").value(), *open_cache(wish.output).value());

    offline::ConvertRequest convert{.input = folder / "eight", .output = folder / "hf"};
    convert.format = FileFormat::Hf;
    auto const converted = offline::convert(*backend, convert);
    REQUIRE(converted);
    CHECK(converted.value().notes.front().starts_with("rows were q8_0, rotated by 32: they are"));
    CHECK_FALSE(open_cache(folder / "hf").value()->facts().stored);

    wish.bits = RowBits::Four;
    wish.force = true;
    CHECK(compact(wish).lengths == std::vector<std::uint32_t>(10, 37));
    wish.bits = RowBits::Eight;
    wish.policy.window = 20;
    CHECK(compact(wish).lengths == std::vector<std::uint32_t>(10, 20));
    wish.input = folder / "four";
    auto four = cut(RowBits::Four, {.name = "fullkv"});
    four.output = folder / "four";
    compact(four);
    CHECK(refusal(wish) ==
          "invalid_argument: four: capacity is 20, whose bytes in the input are those of 10 tokens "
          "of 8 bits, fewer than the window of 20");
}

TEST_CASE_FIXTURE(BitsFixture, "fewer bits are refused by name where they cannot be") {
    auto wish = cut(RowBits::Eight, {.name = "snapkv", .capacity = 20, .window = 4});
    wish.format = FileFormat::Hf;
    CHECK(refusal(wish).starts_with("unsupported: cache: hf has no place for rows of 8 bits"));
    wish.format.reset();
    wish.certified = offline::Certified{.name = "snapkv at 20", .weights = "w"};
    CHECK(refusal(wish) ==
          "unsupported: cache: 'snapkv at 20' is of rows as the model makes them: leave --bits "
          "out, or give a size");
    wish.certified.reset();
    geometry.head_dim = 8;
    make(4);
    CHECK(refusal(wish) ==
          "unsupported: cache: a head has 8 dims, and rows of 8 bits are blocks of 32: leave "
          "--bits out");
    CHECK(files() == std::vector<std::string>{"cache"});
}

TEST_CASE_FIXTURE(BitsFixture, "the same request is not done twice, and of other bits is another") {
    auto wish = cut(RowBits::Eight, {.name = "snapkv", .capacity = 20, .window = 4});
    wish.force = false;
    compact(wish);

    auto const again = compact(wish);
    CHECK(again.already_there);
    CHECK(again.rows_bytes_after == 75U * 10 * 68);
    wish.bits = RowBits::Four;
    CHECK(refusal(wish).starts_with("already_exists: out: "));
}

TEST_CASE_FIXTURE(BitsFixture, "mixed: more bytes are another request where every token fits") {
    auto wish = cut(RowBits::Mixed, {.name = "snapkv", .capacity = 44, .window = 4});
    wish.force = false;
    compact(wish);
    CHECK(compact(wish).already_there);

    wish.policy.capacity = 50;
    CHECK(refusal(wish).starts_with("already_exists: out: "));
}

TEST_CASE_FIXTURE(BitsFixture, "a capacity beyond any prompt keeps every token") {
    auto const outcome =
        compact(cut(RowBits::Four, {.name = "snapkv", .capacity = 4294967295, .window = 4}));
    CHECK(outcome.lengths == std::vector<std::uint32_t>(10, 200));
}
