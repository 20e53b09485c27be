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

    offline::CompactRequest cut(unsigned bits, PolicyRequest const& policy) {
        auto wish = request(policy, make(4));
        wish.bits = bits;
        wish.force = true;
        return wish;
    }
};

}  // namespace

TEST_CASE_FIXTURE(BitsFixture, "a capacity is the bytes of so many tokens of the input") {
    PolicyRequest const policy{.name = "snapkv", .capacity = 20, .window = 4};
    auto const plain = compact(cut(0, policy));
    std::uint64_t const bytes = plain.rows_bytes_after;
    CHECK(bytes == 20U * 10 * 2 * 32 * 4);

    auto const eight = compact(cut(8, policy));  // f32: 128 bytes become 34 and 18.
    CHECK(eight.lengths == std::vector<std::uint32_t>(10, 75));
    CHECK(eight.rows_bytes_after == 75U * 10 * 68);
    CHECK(eight.params.capacity == 75);
    CHECK(eight.notes.back() == "with 8 bits 75 tokens per head have the bytes of 20 in the input");
    auto const four = compact(cut(4, policy));
    CHECK(four.lengths == std::vector<std::uint32_t>(10, 142));
    CHECK(four.rows_bytes_after <= bytes);
    CHECK(four.file_bytes_after == std::filesystem::file_size(folder / "out"));

    auto const made = open_cache(folder / "out").value();
    CHECK(made->facts().provenance.at("bits") == "4");
    CHECK(made->facts().provenance.at("capacity") == "142");
    CHECK(made->geometry().dtype == Dtype::F32);
    CHECK(compact(cut(4, {.name = "snapkv", .window = 4, .ratio = 0.1})).lengths == four.lengths);
}

TEST_CASE_FIXTURE(BitsFixture, "positions are those that as many tokens would have as they are") {
    for (char const* policy : {"snapkv", "dynamickv", "keydiff"}) {
        CAPTURE(policy);
        auto const few = compact(cut(4, {.name = policy, .capacity = 20, .window = 4}));
        auto const quantised = open_cache(folder / "out").value();
        compact(cut(0, {.name = policy, .capacity = few.params.capacity, .window = 4}));
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
    auto const outcome = compact(cut(8, {.name = "snapkv", .capacity = 100, .window = 4}));

    CHECK(outcome.kept_whole);
    CHECK(outcome.rows_bytes_after == 200U * 10 * 68);
    auto const made = open_cache(folder / "out").value();
    CHECK(made->facts().is_whole());
    CHECK(made->facts().stored->type == "q8_0, rotated by 32");
}

TEST_CASE_FIXTURE(BitsFixture, "bytes and keep_mass mean what they mean without") {
    std::uint64_t const most = 60'000;
    auto const by_bytes = compact(cut(4, {.name = "snapkv", .window = 4, .bytes = most}));
    CHECK(by_bytes.file_bytes_after <= most);
    CHECK(by_bytes.file_bytes_after > most - 2000);

    auto const mass = compact(cut(4, {.name = "snapkv", .window = 4, .keep_mass = 0.8}));
    auto const plain = compact(cut(0, {.name = "snapkv", .window = 4, .keep_mass = 0.8}));
    CHECK(mass.lengths == plain.lengths);
    CHECK(mass.mass_kept == plain.mass_kept);
}

TEST_CASE_FIXTURE(BitsFixture,
                  "a whole file of fewer bits is compacted and converted as its rows") {
    compact(cut(8, {.name = "fullkv"}));
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

    wish.bits = 4;
    wish.force = true;
    CHECK(compact(wish).lengths == std::vector<std::uint32_t>(10, 37));
    wish.bits = 8;
    wish.policy.window = 20;
    CHECK(compact(wish).lengths == std::vector<std::uint32_t>(10, 20));
    wish.input = folder / "four";
    auto four = cut(4, {.name = "fullkv"});
    four.output = folder / "four";
    compact(four);
    CHECK(refusal(wish) ==
          "invalid_argument: four: capacity is 20, whose bytes in the input are those of 10 tokens "
          "of 8 bits, fewer than the window of 20");
}

TEST_CASE_FIXTURE(BitsFixture, "fewer bits are refused by name where they cannot be") {
    auto wish = cut(8, {.name = "snapkv", .capacity = 20, .window = 4});
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
    auto wish = cut(8, {.name = "snapkv", .capacity = 20, .window = 4});
    wish.force = false;
    compact(wish);

    auto const again = compact(wish);
    CHECK(again.already_there);
    CHECK(again.rows_bytes_after == 75U * 10 * 68);
    wish.bits = 4;
    CHECK(refusal(wish).starts_with("already_exists: out: "));
}
